/** On DraftAttention Compare: both clips in one picture, parted by a line to drag, playing in step. */

import { addElement, fit, onOutput } from "./host.js"
import { boxOf, ClipSheet, isSheet, Player, sharpen } from "./clip_sheet.js"
// Registered first, so that the figures stand above the picture.
import "./text_on_node.js"
import { say } from "./words.js"

const COMPARE = "DraftAttentionCompare"
const [LEAST, MOST, BAR] = [150, 520, 34]
const NUDGE = 0.02
const MOST_LABEL = 80

/** @type {WeakMap<object, CompareSlider>} */
const sliders = new WeakMap()

class CompareSlider {
  /** @type {ClipSheet[]} reference and clip */
  sheets = []
  /** Where the line stands, 0 at the left edge of the picture. */
  place = 0.5
  difference = false

  constructor(node) {
    this.node = node
    this.canvas = document.createElement("canvas")
    this.canvas.tabIndex = 0
    this.canvas.setAttribute("role", "slider")
    this.canvas.setAttribute("aria-label", say("compare_label"))
    this.canvas.setAttribute("aria-valuemin", "0")
    this.canvas.setAttribute("aria-valuemax", "100")
    this.canvas.title = say("compare_label")
    this.toggle = document.createElement("button")
    this.toggle.type = "button"
    this.toggle.textContent = say("compare_difference")
    this.toggle.title = say("compare_difference_tip")
    this.toggle.addEventListener("click", (event) => {
      event.stopPropagation()
      this.difference = !this.difference
      this.draw()
    })
    this.player = new Player(() => this.draw())
    const bar = document.createElement("div")
    bar.className = "draftattention-bar"
    bar.append(...this.player.elements, this.toggle)
    this.note = document.createElement("div")
    this.note.className = "draftattention-caption draftattention-faint"
    const box = document.createElement("div")
    box.className = "draftattention draftattention-clips"
    box.append(this.canvas, bar, this.note)
    this.box = box
    this.listen()
    addElement(node, "compare_slider", box, () => this.height, true)
    globalThis.ResizeObserver && new ResizeObserver(() => this.draw()).observe(this.canvas)
  }

  /** As high as the picture at the node's width. */
  get height() {
    const { width, height } = this.sheets[0]?.told ?? { width: 16, height: 9 }
    return Math.min(MOST, Math.max(LEAST, ((this.node.size[0] - 40) * height) / width + BAR + (this.note.textContent ? 20 : 0)))
  }

  /** @param {import("./clip_sheet.js").Told[]} told */
  show(told) {
    this.sheets = told.map((one) => new ClipSheet(one, () => this.loaded()))
    const [{ every, shrunk, width, height }] = told
    const notes = [every > 1 && say("clip_thinned", { every }), shrunk && say("clip_shrunk", { width, height })]
    this.note.textContent = notes.filter(Boolean).join(" ")
    this.player.start(told[0])
    this.box.style.minHeight = `${this.height - 20}px`
    fit(this.node)
  }

  loaded() {
    if (this.sheets.some((sheet) => sheet.failed)) this.note.textContent = say("clip_gone")
    this.draw()
  }

  draw() {
    const { canvas, sheets } = this
    canvas.setAttribute("aria-valuenow", String(Math.round(100 * this.place)))
    this.toggle.setAttribute("aria-pressed", String(this.difference))
    if (!sheets.length || !sheets.every((sheet) => sheet.ready) || !sharpen(canvas)) return
    const pen = canvas.getContext("2d")
    const box = boxOf(canvas, sheets[0].told)
    const { frame } = this.player
    sheets[0].draw(pen, frame, box)
    if (this.difference) this.drawDifference(pen, frame, box)
    else this.drawParted(pen, frame, box)
  }

  drawParted(pen, frame, box) {
    const [x, y, wide, high] = box
    const line = x + this.place * wide
    pen.save()
    pen.beginPath()
    pen.rect(line, y, x + wide - line, high)
    pen.clip()
    this.sheets[1].draw(pen, frame, box)
    pen.restore()
    const scale = pen.canvas.width / pen.canvas.clientWidth
    pen.fillStyle = "#000a"
    pen.fillRect(line - 1.5 * scale, y, 3 * scale, high)
    pen.fillStyle = "#fff"
    pen.fillRect(line - 0.5 * scale, y, scale, high)
    const [left, right] = this.sheets.map(({ told }) => String(told.label ?? "").slice(0, MOST_LABEL))
    label(pen, left, x, y, line - x, false)
    label(pen, right, line, y, x + wide - line, true)
  }

  /** Four times the difference: canvases subtract and add by themselves. */
  drawDifference(pen, frame, box) {
    pen.save()
    pen.globalCompositeOperation = "difference"
    this.sheets[1].draw(pen, frame, box)
    pen.globalCompositeOperation = "lighter"
    for (let doubled = 0; doubled < 2; doubled++) pen.drawImage(pen.canvas, 0, 0)
    pen.restore()
    label(pen, say("compare_difference"), box[0], box[1], box[2], false)
  }

  listen() {
    const { canvas } = this
    const move = (event) => {
      const shown = canvas.getBoundingClientRect()
      const [x, , wide] = boxOf(canvas, this.sheets[0].told)
      this.to((((event.clientX - shown.left) / shown.width) * canvas.width - x) / wide)
    }
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.sheets.length) return
      event.stopPropagation()
      canvas.focus({ preventScroll: true })
      canvas.setPointerCapture(event.pointerId)
      move(event)
    })
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return
      event.stopPropagation()
      move(event)
    })
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return
      const actions = {
        ArrowLeft: () => this.to(this.place - NUDGE),
        ArrowRight: () => this.to(this.place + NUDGE),
        ",": () => this.player.show(this.player.frame - 1),
        ".": () => this.player.show(this.player.frame + 1),
        " ": () => this.player.play(!this.player.playing),
      }
      if (!actions[event.key]) return
      event.preventDefault()
      event.stopPropagation()
      actions[event.key]()
    })
  }

  to(place) {
    this.place = Math.min(1, Math.max(0, place))
    this.draw()
  }
}

/** A word in a corner of its part, if there is room for it. */
function label(pen, text, x, y, wide, right) {
  const scale = pen.canvas.width / pen.canvas.clientWidth
  pen.font = `${11 * scale}px Inter, Arial, sans-serif`
  pen.textBaseline = "top"
  const [gap, width] = [4 * scale, pen.measureText(text).width]
  if (!text || width + 4 * gap > wide) return
  const left = right ? x + wide - width - 3 * gap : x + gap
  pen.fillStyle = "#000a"
  pen.fillRect(left, y + gap, width + 2 * gap, 17 * scale)
  pen.fillStyle = "#fff"
  pen.fillText(text, left + gap, y + gap + 3 * scale)
}

onOutput("DraftAttention.CompareSlider", (node, output) => {
  const told = output?.draftattention_clips
  if (node.comfyClass !== COMPARE || !node.addDOMWidget || told?.length !== 2 || !told.every(isSheet)) return
  if (!sliders.has(node)) sliders.set(node, new CompareSlider(node))
  sliders.get(node).show(told)
})
