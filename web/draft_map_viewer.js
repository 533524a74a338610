/** On DraftAttention Preview: click a place in a frame and see what its block attends to, in any head that was kept. */

import { addElement, app, fit, nameOfKind, onOutput } from "./host.js"
import { boxOf, ClipSheet, isSheet, sharpen, slider } from "./clip_sheet.js"
import { areMaps, DraftMaps } from "./draft_maps.js"
import { say } from "./words.js"

const [PREVIEW, CAPTURE] = ["DraftAttentionPreview", "DraftAttentionCapture"]
const [LEAST, MOST, BELOW, WIDTH, EMPTY] = [130, 420, 178, 400, 66]
const [COLD, HOT, KEPT, QUERY] = [[20, 20, 60], [255, 214, 64], [64, 224, 160], "#ff5548"]
const BAR = "#4fa3d1"
const CHOICES = ["frame", "step", "layer", "head"]

/** @type {WeakMap<object, DraftMapViewer>} */
const viewers = new WeakMap()

class DraftMapViewer {
  /** @type {DraftMaps|null} */
  maps = null
  /** @type {ClipSheet|null} */
  sheet = null
  /** @type {import("./draft_maps.js").Row|null} */
  row = null
  blocks = null
  /** The token that was clicked: frame, row, column. */
  place = [0, 0, 0]
  /** Indices of the sliders. */
  at = { frame: 0, step: 0, layer: 0, head: 0 }
  kept = false
  pointed = null

  constructor(node) {
    this.node = node
    this.box = document.createElement("div")
    this.box.className = "draftattention draftattention-clips draftattention-maps empty"
    this.canvas = document.createElement("canvas")
    this.canvas.tabIndex = 0
    this.canvas.setAttribute("role", "application")
    this.canvas.setAttribute("aria-label", say("maps_label"))
    this.canvas.title = say("maps_label")
    this.bars = document.createElement("canvas")
    this.bars.className = "draftattention-bars"
    this.bars.title = say("maps_bars")
    this.caption = document.createElement("div")
    this.caption.className = "draftattention-caption"
    this.caption.setAttribute("aria-live", "polite")
    this.note = document.createElement("div")
    this.note.className = "draftattention-caption draftattention-faint"
    this.note.textContent = say("maps_empty", { name: nameOfKind(CAPTURE) })
    this.toggle = document.createElement("button")
    this.toggle.type = "button"
    this.toggle.textContent = say("maps_kept")
    this.toggle.title = say("maps_kept_tip")
    this.toggle.addEventListener("click", (event) => {
      event.stopPropagation()
      this.kept = !this.kept
      this.draw()
    })
    this.sliders = {}
    this.values = {}
    const choices = document.createElement("div")
    choices.className = "draftattention-choices"
    for (const name of CHOICES) {
      const label = document.createElement("span")
      label.textContent = say(`maps_${name}`)
      this.sliders[name] = slider(say(`maps_${name}`), (value) => this.choose({ [name]: value }))
      this.values[name] = document.createElement("span")
      this.values[name].className = "draftattention-faint"
      choices.append(label, this.sliders[name], this.values[name])
    }
    const bar = document.createElement("div")
    bar.className = "draftattention-bar"
    bar.append(this.caption, this.toggle)
    this.box.append(this.canvas, this.bars, choices, bar, this.note)
    this.listen()
    addElement(node, "draft_maps", this.box, () => this.height)
    globalThis.ResizeObserver && new ResizeObserver(() => this.draw()).observe(this.canvas)
  }

  get height() {
    if (!this.sheet) return EMPTY
    const { width, height } = this.sheet.told
    return Math.min(MOST, Math.max(LEAST, ((this.node.size[0] - 40) * height) / width)) + BELOW
  }

  show(told) {
    const empty = !areMaps(told) || !isSheet(told.sheet)
    this.maps = empty ? null : new DraftMaps(told)
    this.sheet = empty ? null : new ClipSheet(told.sheet, () => this.loaded())
    this.row = this.blocks = this.pointed = null
    this.box.classList.toggle("empty", empty)
    this.note.textContent = empty ? say("maps_none") : ""
    if (!empty) {
      const { steps, layers } = this.maps
      const lengths = { frame: told.grid[0], step: steps.length, layer: layers.length, head: told.maps[0].heads }
      const { at } = this
      for (const name of CHOICES) {
        this.sliders[name].max = String(lengths[name] - 1)
        this.sliders[name].disabled = lengths[name] < 2
        at[name] = Math.min(at[name], lengths[name] - 1)
      }
      const inside = this.place.every((one, axis) => one < told.grid[axis])
      if (!inside || !this.seen) this.place = told.grid.map((size) => Math.floor(size / 2))
      if (!this.seen) at.frame = this.place[0]
      this.seen = true
      void this.choose({})
    }
    this.box.style.minHeight = `${this.height - 20}px`
    if (!empty) this.node.setSize([Math.max(this.node.size[0], WIDTH), this.node.size[1]])
    fit(this.node)
  }

  loaded() {
    if (this.sheet?.failed) this.note.textContent = say("clip_gone")
    this.draw()
  }

  /** Take what the sliders say, and fetch what is needed for it. */
  async choose(changed) {
    Object.assign(this.at, changed)
    const { maps, at } = this
    const [step, layer] = [maps.steps[at.step], maps.layers[at.layer]]
    const values = { frame: at.frame, step: step + 1, layer, head: at.head }
    for (const name of CHOICES) {
      this.sliders[name].value = String(at[name])
      this.values[name].textContent = String(values[name])
    }
    const map = maps.find(step, layer)
    const asked = (this.asked = {})
    if (!map) this.row = null
    else {
      try {
        const [blocks, data] = await Promise.all([maps.loadBlocks(), maps.load(map)])
        if (this.asked !== asked) return
        this.blocks = blocks
        this.row = maps.row(map, data, at.head, blocks.query[this.token(...this.place)])
      } catch {
        if (this.asked !== asked) return
        this.row = null
        this.note.textContent = say("clip_gone")
        return this.draw()
      }
    }
    const stride = map && map.rows.length > 1 ? map.rows[1] - map.rows[0] : 1
    this.note.textContent = [
      !map && say("maps_dense", { step: step + 1, layer }),
      map?.merged > 1 && say("maps_merged", { count: map.merged }),
      stride > 1 && say("maps_thinned", { stride }),
    ]
      .filter(Boolean)
      .join(" ")
    this.draw()
  }

  token(frame, row, column) {
    const [, h, w] = this.maps.told.grid
    return (frame * h + row) * w + column
  }

  column(token) {
    return Math.floor(this.blocks.key[token] / this.row.merged)
  }

  draw() {
    const { canvas, sheet, maps } = this
    if (!maps || !sheet.ready || !sharpen(canvas)) return
    const pen = canvas.getContext("2d")
    const box = boxOf(canvas, sheet.told)
    sheet.draw(pen, Math.min(this.at.frame, sheet.told.frames - 1), box)
    this.toggle.setAttribute("aria-pressed", String(this.kept))
    if (this.row) {
      this.drawHeat(pen, box)
      this.outline(pen, box)
    }
    this.drawBars()
    this.describe()
  }

  drawHeat(pen, [x, y, wide, high]) {
    const [, h, w] = this.maps.told.grid
    const heat = new ImageData(w, h)
    const largest = this.row.share.reduce((a, b) => Math.max(a, b), 0)
    for (let token = this.token(this.at.frame, 0, 0), pixel = 0; pixel < h * w; token++, pixel++) {
      const column = this.column(token)
      if (this.kept) {
        const kept = this.row.kept[column] / 255
        heat.data.set([...KEPT.map((one) => one * kept), 255 * (0.72 - 0.57 * kept)], 4 * pixel)
      } else {
        const share = Math.sqrt(this.row.share[column] / largest)
        heat.data.set([...COLD.map((one, index) => one + share * (HOT[index] - one)), 165], 4 * pixel)
      }
    }
    const small = Object.assign(document.createElement("canvas"), { width: w, height: h })
    small.getContext("2d").putImageData(heat, 0, 0)
    pen.imageSmoothingEnabled = false
    pen.drawImage(small, x, y, wide, high)
  }

  /** The border of the query block in this frame. */
  outline(pen, [x, y, wide, high]) {
    const [, h, w] = this.maps.told.grid
    const own = (row, column) =>
      row >= 0 && column >= 0 && row < h && column < w &&
      this.blocks.query[this.token(this.at.frame, row, column)] === this.row.block
    pen.strokeStyle = QUERY
    pen.lineWidth = (2 * pen.canvas.width) / pen.canvas.clientWidth
    pen.beginPath()
    const line = (row, column, down, right) => {
      pen.moveTo(x + (column * wide) / w, y + (row * high) / h)
      pen.lineTo(x + ((column + right) * wide) / w, y + ((row + down) * high) / h)
    }
    for (let row = 0; row <= h; row++)
      for (let column = 0; column <= w; column++) {
        if (own(row, column) !== own(row - 1, column)) line(row, column, 0, 1)
        if (own(row, column) !== own(row, column - 1)) line(row, column, 1, 0)
      }
    pen.stroke()
  }

  /** How much of the attention goes to each frame. */
  drawBars() {
    const { bars } = this
    if (!sharpen(bars)) return
    const pen = bars.getContext("2d")
    const [t, h, w] = this.maps.told.grid
    const wide = bars.width / t
    const shares = this.row ? this.perFrame() : new Float64Array(t)
    const largest = shares.reduce((a, b) => Math.max(a, b), 1e-12)
    const scale = bars.width / bars.clientWidth
    shares.forEach((share, frame) => {
      const high = Math.max(scale, (share / largest) * (bars.height - 4 * scale))
      pen.fillStyle = BAR
      pen.globalAlpha = frame === this.at.frame ? 1 : 0.45
      pen.fillRect(frame * wide, bars.height - high, wide - (wide > 4 * scale ? scale : 0), high)
    })
    pen.globalAlpha = 1
    pen.fillStyle = QUERY
    const own = (frame) => {
      const from = this.token(frame, 0, 0)
      return this.row && this.blocks.query.subarray(from, from + h * w).includes(this.row.block)
    }
    for (let frame = 0; frame < t; frame++)
      if (own(frame)) pen.fillRect(frame * wide, 0, wide - (wide > 4 * scale ? scale : 0), 2 * scale)
  }

  /** A column's share belongs to its tokens evenly. */
  perFrame() {
    const [t, h, w] = this.maps.told.grid
    const counts = new Float64Array(this.row.share.length)
    for (let token = 0; token < this.maps.tokens; token++) counts[this.column(token)]++
    const shares = new Float64Array(t)
    for (let token = 0; token < this.maps.tokens; token++) {
      const column = this.column(token)
      shares[Math.floor(token / (h * w))] += this.row.share[column] / counts[column]
    }
    return shares
  }

  describe() {
    const { row, pointed } = this
    if (!row) return void (this.caption.textContent = "")
    const percent = (share) => (100 * share).toFixed(share < 0.1 ? 1 : 0)
    const kept = row.kept.reduce((sum, one) => sum + one, 0) / row.kept.length / 255
    const mass = row.share.reduce((sum, one, column) => sum + (one * row.kept[column]) / 255, 0)
    let text = say("maps_row", { kept: percent(kept), mass: percent(mass) })
    if (pointed) {
      const column = this.column(this.token(this.at.frame, ...pointed))
      const key = row.kept[column] > 127 ? "maps_here_kept" : "maps_here_skipped"
      text = say(key, { share: percent(row.share[column]) })
    }
    if (this.caption.textContent !== text) this.caption.textContent = text
  }

  /** Row and column of the token under the mouse; null outside the picture. */
  under(event) {
    const { canvas, maps, sheet } = this
    if (!maps || !sheet.ready) return null
    const shown = canvas.getBoundingClientRect()
    const [x, y, wide, high] = boxOf(canvas, sheet.told)
    const right = (((event.clientX - shown.left) / shown.width) * canvas.width - x) / wide
    const down = (((event.clientY - shown.top) / shown.height) * canvas.height - y) / high
    const [, h, w] = maps.told.grid
    return right >= 0 && right < 1 && down >= 0 && down < 1 ? [Math.floor(down * h), Math.floor(right * w)] : null
  }

  look([row, column]) {
    const [, h, w] = this.maps.told.grid
    const inside = (one, size) => Math.min(size - 1, Math.max(0, one))
    this.place = [this.at.frame, inside(row, h), inside(column, w)]
    void this.choose({})
  }

  listen() {
    const { canvas, bars } = this
    canvas.addEventListener("pointerdown", (event) => {
      const place = this.under(event)
      if (event.button !== 0 || !place) return
      event.stopPropagation()
      canvas.focus({ preventScroll: true })
      canvas.setPointerCapture(event.pointerId)
      this.look(place)
    })
    canvas.addEventListener("pointermove", (event) => {
      const place = this.under(event)
      if (canvas.hasPointerCapture(event.pointerId)) {
        event.stopPropagation()
        if (place) this.look(place)
      }
      this.pointed = place
      if (this.row) this.describe()
    })
    canvas.addEventListener("pointerleave", () => {
      this.pointed = null
      this.describe()
    })
    bars.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.maps) return
      event.stopPropagation()
      const shown = bars.getBoundingClientRect()
      const frame = Math.floor(((event.clientX - shown.left) / shown.width) * this.maps.told.grid[0])
      void this.choose({ frame: Math.min(this.maps.told.grid[0] - 1, Math.max(0, frame)) })
    })
    canvas.addEventListener("keydown", (event) => {
      if (!this.maps || event.ctrlKey || event.metaKey || event.altKey) return
      const [, row, column] = this.place
      const last = this.maps.told.grid[0] - 1
      const actions = {
        ArrowLeft: () => this.look([row, column - 1]),
        ArrowRight: () => this.look([row, column + 1]),
        ArrowUp: () => this.look([row - 1, column]),
        ArrowDown: () => this.look([row + 1, column]),
        ",": () => this.choose({ frame: Math.max(0, this.at.frame - 1) }),
        ".": () => this.choose({ frame: Math.min(last, this.at.frame + 1) }),
        " ": () => this.toggle.click(),
      }
      if (!actions[event.key]) return
      event.preventDefault()
      event.stopPropagation()
      actions[event.key]()
    })
  }
}

app.registerExtension({
  name: "DraftAttention.EmptyDraftMaps",
  nodeCreated(node) {
    if (node.comfyClass !== PREVIEW || !node.addDOMWidget || !globalThis.DecompressionStream) return
    viewers.set(node, new DraftMapViewer(node))
    fit(node)
  },
})

onOutput("DraftAttention.DraftMapViewer", (node, output) => {
  const [told] = output?.draftattention_maps ?? []
  if (told) viewers.get(node)?.show(told)
})
