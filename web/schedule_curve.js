/** The curve on the Sparsity Scheduler: drag, add and remove its points. It writes the node's own inputs. */

import { addElement, after, allNodes, api, app, asOneStep, fit, hints, isLinked, nodeOfRun, onChange, onTheme, widgetOf } from "./host.js"
import { onProblems, problemsOf } from "./checked_text.js"
import { drawCurve, frame } from "./curve_drawing.js"
import * as curves from "./curve_points.js"
// Registered first, so that its button stands above the curve.
import "./folded_inputs.js"
import { samplersOf } from "./sampler_steps.js"
import { say, wordOf } from "./words.js"

const SCHEDULER = "SparsityScheduler"
const CUSTOM = "custom points"
const [WIDTH, HEIGHT] = [400, 262]
const NEAR = 11
const [NUDGE, BIG_NUDGE] = [0.01, 0.1]

/** @type {WeakMap<object, ScheduleCurve>} */
const editors = new WeakMap()

class ScheduleCurve {
  /** Index of the point that keys move; -1 for none. */
  selected = -1
  pointer = null
  /** Progress of the sampler's steps as the server has placed them, with the number they hold for. */
  placed = null
  lastGood = [[0, 1]]

  constructor(node) {
    this.node = node
    this.box = document.createElement("div")
    this.box.className = "draftattention draftattention-curve"
    this.bar = document.createElement("div")
    this.bar.className = "draftattention-bar"
    this.canvas = document.createElement("canvas")
    this.canvas.tabIndex = 0
    this.canvas.setAttribute("role", "application")
    this.canvas.setAttribute("aria-label", say("curve_label"))
    this.caption = document.createElement("div")
    this.caption.className = "draftattention-caption"
    this.spoken = document.createElement("div")
    this.spoken.className = "draftattention-spoken"
    this.spoken.setAttribute("aria-live", "polite")
    this.box.append(this.bar, this.canvas, this.caption, this.spoken)
    this.makeBar()
    this.listen()
    addElement(node, "curve_editor", this.box, () => HEIGHT)
    new ResizeObserver(() => this.draw()).observe(this.canvas)
  }

  makeBar() {
    const start = document.createElement("span")
    start.className = "draftattention-faint"
    start.textContent = say("start_from")
    this.bar.append(start)
    this.presets = hints(SCHEDULER, "curve").presets ?? {}
    for (const name of Object.keys(this.presets))
      this.bar.append(button(wordOf("curve", name), say("start_from_tip", { name }), () => this.startFrom(name)))
    this.stepButton = button(say("step"), say("step_tip"), () => this.toggleStep())
    this.addButton = button("+", say("add_tip"), () => this.addAfter())
    this.removeButton = button("−", say("remove_tip"), () => this.remove(this.selected))
    const own = document.createElement("span")
    own.className = "draftattention-own-points"
    own.append(this.stepButton, this.addButton, this.removeButton)
    this.bar.append(own)
  }

  value(name) {
    return widgetOf(this.node, name)?.value
  }

  get own() {
    return this.value("curve") === CUSTOM
  }

  /** Whether another node draws the curve. */
  get drawn() {
    return isLinked(this.node, "drawn_curve")
  }

  get steps() {
    return Math.max(1, Math.round(this.value("steps") ?? 20))
  }

  /** The points that are edited: the user's, or those of the preset, which an edit makes the user's. */
  get points() {
    if (this.drawn) return this.placed?.points?.length ? this.placed.points : [[0, 1]]
    const preset = this.presets[this.value("curve")]
    if (preset) return curves.presetPoints(preset, this.steps, this.value("density"))
    // A workflow may name a curve that this version does not have.
    if (this.own) this.lastGood = curves.parsePoints(this.value("points") ?? "") ?? this.lastGood
    return this.lastGood
  }

  /** Write points, as part of a change that undo takes back at once. */
  write(points) {
    if (this.drawn) return
    const values = { points: curves.formatPoints(points), curve: CUSTOM }
    for (const [name, value] of Object.entries(values)) {
      const widget = widgetOf(this.node, name)
      if (!widget || widget.value === value) continue
      widget.value = value
      widget.callback?.(value, app.canvas, this.node)
    }
    this.draw()
  }

  change(points, selected = this.selected) {
    if (this.drawn) return
    this.selected = Math.min(selected, points.length - 1)
    asOneStep(() => this.write(points))
  }

  startFrom(name) {
    this.change(curves.presetPoints(this.presets[name], this.steps), -1)
  }

  toggleStep() {
    if (this.selected >= 0) this.change(curves.toggleStep(this.points, this.selected))
  }

  /** One more point, in the middle of the way to the next one. */
  addAfter() {
    const { points } = this
    const here = points[Math.max(0, this.selected)]
    const next = points.find(([x]) => x > here[0])?.[0] ?? 1
    const place = (here[0] + next) / 2
    this.change(...curves.addPoint(points, place, curves.densityAt(points, place)))
  }

  remove(index) {
    if (index >= 0) this.change(curves.removePoint(this.points, index), index - 1)
  }

  /** Where the mouse is, in pixels of the element, however large the canvas is shown. */
  mouse(event) {
    const shown = this.canvas.getBoundingClientRect()
    const zoom = this.canvas.clientWidth / shown.width
    return [(event.clientX - shown.left) * zoom, (event.clientY - shown.top) * zoom]
  }

  get frame() {
    return frame(this.canvas.clientWidth, this.canvas.clientHeight)
  }

  /** Index of the point under the mouse, the last of several; -1 if there is none. */
  under([x, y]) {
    if (this.drawn) return -1
    const at = this.frame
    return this.points.findLastIndex(([px, py]) => Math.hypot(at.x(px) - x, at.y(py) - y) <= NEAR)
  }

  /** Progress and density for a place on the element; progress catches on the sampler's steps, density on percents. */
  valueAt([x, y]) {
    const at = this.frame
    const step = this.places.find((place) => Math.abs(at.x(place) - x) <= 4)
    const round = (one) => Math.round(one * 100) / 100
    return [step ?? round(at.progress(x)), round(at.density(y))]
  }

  listen() {
    const { canvas } = this
    let dragged = false
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return
      event.stopPropagation()
      canvas.focus({ preventScroll: true })
      this.selected = this.under(this.mouse(event))
      dragged = false
      if (this.selected >= 0) canvas.setPointerCapture(event.pointerId)
      this.draw()
    })
    canvas.addEventListener("pointermove", (event) => {
      const place = this.mouse(event)
      this.pointer = this.frame.progress(place[0])
      if (this.selected >= 0 && canvas.hasPointerCapture(event.pointerId)) {
        event.stopPropagation()
        dragged = true
        this.write(curves.movePoint(this.points, this.selected, ...this.valueAt(place)))
      } else {
        canvas.style.cursor = this.under(place) >= 0 ? "grab" : "crosshair"
        this.draw()
      }
    })
    canvas.addEventListener("pointerup", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return
      canvas.releasePointerCapture(event.pointerId)
      if (dragged) asOneStep(() => {})
    })
    canvas.addEventListener("pointerleave", () => {
      this.pointer = null
      this.draw()
    })
    canvas.addEventListener("dblclick", (event) => {
      event.stopPropagation()
      const place = this.mouse(event)
      if (this.under(place) < 0) this.change(...curves.addPoint(this.points, ...this.valueAt(place)))
    })
    canvas.addEventListener("contextmenu", (event) => {
      event.preventDefault()
      event.stopPropagation()
      this.remove(this.under(this.mouse(event)))
    })
    canvas.addEventListener("keydown", (event) => this.key(event))
    for (const kind of ["focus", "blur"]) canvas.addEventListener(kind, () => this.draw())
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return
    const { points } = this
    const by = event.shiftKey ? BIG_NUDGE : NUDGE
    const move = (right, up) => {
      if (this.selected < 0) return this.select(0)
      const [x, y] = points[this.selected]
      const round = (one) => Math.round(one * 1000) / 1000
      this.change(curves.movePoint(points, this.selected, round(x + right), round(y + up)))
    }
    const actions = {
      ArrowLeft: () => move(-by, 0),
      ArrowRight: () => move(by, 0),
      ArrowUp: () => move(0, by),
      ArrowDown: () => move(0, -by),
      PageDown: () => this.select((this.selected + 1) % points.length),
      PageUp: () => this.select((Math.max(0, this.selected) + points.length - 1) % points.length),
      Home: () => this.select(0),
      End: () => this.select(points.length - 1),
      Delete: () => this.remove(this.selected),
      Backspace: () => this.remove(this.selected),
      Insert: () => this.addAfter(),
      "+": () => this.addAfter(),
      s: () => this.toggleStep(),
      Escape: () => this.select(-1),
    }
    if (!actions[event.key]) return
    event.preventDefault()
    event.stopPropagation()
    actions[event.key]()
  }

  select(index) {
    this.selected = index
    this.draw()
  }

  /** Progress of the sampler's steps: as the server placed them for that many, else evenly. */
  get places() {
    if (this.placed?.steps === this.steps) return this.placed.places
    const [sampler] = samplersOf(this.node)
    return curves.evenSteps(this.steps, sampler?.whole === this.steps && this.parts.length < 2 ? sampler.first : 0)
  }

  /** The stretches of several samplers that follow each other, such as those of Wan 2.2's two experts. */
  get parts() {
    return samplersOf(this.node)
      .filter((sampler) => sampler.first > 0 || sampler.last < 1)
      .map(({ first, last, title }) => ({ from: first, to: last, title }))
      .sort((a, b) => a.from - b.from)
  }

  draw() {
    if (!this.canvas.isConnected) return
    const { points, places, parts, own, selected, pointer } = this
    const curve = curves.withEnd(points, this.value("end_share") ?? 0, this.value("end_density") ?? 0)
    drawCurve(this.canvas, { points, curve, places, parts, own, selected, pointer })
    for (const one of this.bar.querySelectorAll("button")) one.disabled = this.drawn
    if (selected < 0) this.stepButton.disabled = this.removeButton.disabled = true
    this.stepButton.setAttribute("aria-pressed", String(selected >= 0 && curves.isStep(points, selected)))
    this.describe(points, curve, places)
  }

  /** What the curve will cost; for screen readers, where the chosen point stands too. */
  describe(points, curve, places) {
    const wrong = this.own && !this.drawn && problemsOf(this.node).points
    const mean = curves.meanDensity(curve, places)
    const layers = this.value("layer_bands")?.trim() || this.value("dense_layers")?.trim()
    const percent = (one) => (100 * one).toFixed(0)
    const key = layers ? "predicted_layers" : "predicted"
    const work = say(key, { steps: places.length, exact: percent(mean), skipped: percent(1 - mean) })
    const unseen = this.drawn && !this.placed?.points?.length
    this.caption.textContent = wrong || (unseen ? say("drawn_unseen") : this.drawn ? `${say("drawn")} ${work}` : work)
    this.caption.classList.toggle("draftattention-wrong", Boolean(wrong))
    const [progress, density] = points[this.selected] ?? []
    const chosen = progress === undefined ? "" : say("point", { progress: percent(progress), density: percent(density) })
    if (this.spoken.textContent !== chosen) this.spoken.textContent = chosen
  }
}

function button(text, tip, press) {
  const made = document.createElement("button")
  made.type = "button"
  made.textContent = text
  made.title = tip
  made.addEventListener("click", (event) => {
    event.stopPropagation()
    press()
  })
  return made
}

/** Draw all curves again: a sampler elsewhere, or the theme, may have changed. */
function drawAll() {
  for (const node of allNodes()) editors.get(node)?.draw()
}

app.registerExtension({
  name: "DraftAttention.ScheduleCurve",
  setup() {
    api.addEventListener("graphChanged", drawAll)
    api.addEventListener("executed", ({ detail }) => {
      const editor = editors.get(nodeOfRun(detail.node))
      const [placed] = detail.output?.draftattention_steps ?? []
      if (!editor || !placed) return
      editor.placed = placed
      editor.draw()
    })
    onProblems((node) => editors.get(node)?.draw())
    onTheme(drawAll)
  },
  nodeCreated(node) {
    if (node.comfyClass !== SCHEDULER) return
    const editor = new ScheduleCurve(node)
    editors.set(node, editor)
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]])
    onChange(node, () => editor.draw())
    after(node, "onResize", () => editor.draw())
    fit(node)
  },
})
