/** Under Apply DraftAttention: what each layer did at each step, filling in while sampling and kept in the workflow. */

import { addElement, after, api, app, fit, keepState, nodeOfRun, workflowId } from "./host.js"
import { say } from "./words.js"

const APPLY = "ApplyDraftAttention"
const EVENT = "draftattention.live_map"
const KEPT = "draftattention_map"
const MOST_STEPS = 100
const MOST_LAYERS = 128
const HEIGHT = 150
/** Why a layer was dense, in the order of the server's numbers -2, -3, ... */
const REASONS = [
  ["schedule", "#8a8f98"],
  ["dense layer", "#b3a27a"],
  ["too few tokens", "#c98b4a"],
  ["not self-attention", "#777777"],
  ["unknown token grid", "#d9534f"],
  ["tokens not accounted for", "#c94f7c"],
  ["mask", "#e5534b"],
  ["no backend", "#b03a3a"],
  ["budget", "#9a86c9"],
  ["settings for another number of heads", "#d96aa0"],
  ["non-finite output", "#ff3b30"],
  ["out of memory", "#ff6a00"],
  ["error", "#ff0033"],
  ["stood aside after errors", "#a80f2f"],
]
const SKIPPED = "#6fbf8f"

/**
 * @typedef {object} Kept what a node keeps of its last run
 * @property {number} run when it began
 * @property {number|null} steps of the sampler
 * @property {number} layers how many the model has
 * @property {number} reached how many steps were begun, those that the picture has no room for included
 * @property {number} seconds since the run began
 * @property {boolean} done
 * @property {{step: number, skipped: boolean, seconds: number, cells: number[]}[]} rows by step
 */

/** @type {WeakMap<object, {canvas: HTMLCanvasElement, key: HTMLElement, text: HTMLElement}>} */
const views = new WeakMap()

/** The colour of a cell: the fewer blocks a sparse layer computed, the brighter; null where nothing is known. */
function colourOf(cell) {
  if (cell >= 0) return `hsl(202 ${45 + 0.35 * (100 - cell)}% ${30 + 0.4 * (100 - cell)}%)`
  return REASONS[-2 - cell]?.[1] ?? null
}

/** @param {Kept} map */
const stepsOf = (map) => Math.min(MOST_STEPS, Math.max(map.steps ?? 0, ...map.rows.map((row) => row.step + 1), 1))

/** Draw the cells, sharp at any zoom. Without a size there is nothing to draw. */
function draw(node) {
  const { canvas } = views.get(node) ?? {}
  const map = node.properties?.[KEPT]
  if (!map || !canvas?.clientWidth || !canvas.clientHeight) return
  const shown = canvas.getBoundingClientRect()
  const scale = Math.min(4, Math.max(1, (shown.width / canvas.clientWidth) * devicePixelRatio))
  canvas.width = Math.round(canvas.clientWidth * scale)
  canvas.height = Math.round(canvas.clientHeight * scale)
  const pen = canvas.getContext("2d")
  const layers = Math.max(1, ...map.rows.map((row) => row.cells.length))
  const [wide, high] = [canvas.width / stepsOf(map), canvas.height / layers]
  const [gapX, gapY] = [wide > 6 * scale ? scale : 0, high > 4 * scale ? scale : 0]
  for (const row of map.rows) {
    const cells = row.skipped ? [null] : row.cells
    const tall = row.skipped ? canvas.height : high
    cells.forEach((cell, layer) => {
      const colour = row.skipped ? SKIPPED : colourOf(cell)
      if (!colour) return
      pen.fillStyle = colour
      pen.fillRect(row.step * wide, layer * tall, wide - gapX, tall - gapY)
    })
  }
}

/** What the colours mean, for those that are in the picture. */
function keyOf(map) {
  const cells = map.rows.filter((row) => !row.skipped).flatMap((row) => row.cells)
  const sparse = cells.filter((cell) => cell >= 0)
  const entries = []
  if (sparse.length) {
    const [low, high] = [sparse.reduce((a, b) => Math.min(a, b)), sparse.reduce((a, b) => Math.max(a, b))]
    entries.push([colourOf(Math.round((low + high) / 2)), say("map_sparse", { low, high })])
  }
  if (map.rows.some((row) => row.skipped)) entries.push([SKIPPED, say("map_skipped")])
  REASONS.forEach(([reason, colour], index) => {
    if (cells.includes(-2 - index)) entries.push([colour, say("map_dense", { reason })])
  })
  if (map.layers > MOST_LAYERS) entries.push(["", say("map_cut", { shown: MOST_LAYERS, layers: map.layers })])
  return entries
}

const duration = (seconds) =>
  seconds < 60
    ? `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`
    : `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`

/** Time per step, and how long the rest will take at the pace of the run so far. */
function textOf(map) {
  const done = map.reached
  const pace = map.seconds / done
  const values = { step: done, steps: map.steps ?? done, pace: duration(pace), total: duration(map.seconds) }
  if (map.done) return say("map_done", { ...values, steps: done })
  return map.steps ? say("map_step_of", { ...values, left: duration(pace * (map.steps - done)) }) : say("map_step", values)
}

function addView(node) {
  const box = document.createElement("div")
  box.className = "draftattention draftattention-map"
  const canvas = document.createElement("canvas")
  canvas.setAttribute("role", "img")
  canvas.setAttribute("aria-label", say("map_label"))
  canvas.title = say("map_label")
  const key = document.createElement("div")
  key.className = "draftattention-map-key"
  const text = document.createElement("div")
  box.append(canvas, text, key)
  views.set(node, { canvas, key, text })
  addElement(node, "live_map", box, () => HEIGHT)
  globalThis.ResizeObserver && new ResizeObserver(() => draw(node)).observe(canvas)
  fit(node)
}

/** Show what a node keeps; a node that keeps nothing looks as if there were no map. */
function show(node) {
  const map = node.properties?.[KEPT]
  if (!Array.isArray(map?.rows) || !map.rows.length || !node.addDOMWidget) return
  if (!views.has(node)) addView(node)
  const view = views.get(node)
  view.text.textContent = textOf(map)
  view.key.replaceChildren(
    ...keyOf(map).map(([colour, words]) => {
      const entry = document.createElement("span")
      const mark = document.createElement("i")
      mark.style.background = colour
      entry.append(mark, words)
      return entry
    }),
  )
  draw(node)
}

/** Put a message into the node's map; one of another run begins a new map. */
function take(node, told) {
  let map = node.properties[KEPT]
  if (map?.run !== told.run) {
    map = { run: told.run, steps: told.steps, layers: 0, reached: 0, seconds: 0, done: false, rows: [] }
  }
  map.seconds = told.seconds
  map.reached = Math.max(map.reached, (told.step ?? -1) + 1)
  if (told.outcome === "done") map.done = true
  else if (told.step < MOST_STEPS) {
    const skipped = told.outcome !== "computed"
    const before = map.rows.find((row) => row.step === told.step)
    // Some samplers evaluate a step several times: it was skipped only if none of them was computed.
    if (!before || !skipped) {
      const cells = skipped ? [] : told.layers.slice(0, MOST_LAYERS)
      map.rows = map.rows.filter((row) => row !== before)
      map.rows.push({ step: told.step, skipped, seconds: told.seconds, cells })
      map.rows.sort((a, b) => a.step - b.step)
    }
    map.layers = Math.max(map.layers, told.all_layers)
  }
  node.properties[KEPT] = map
  show(node)
  if (map.done) keepState()
}

app.registerExtension({
  name: "DraftAttention.LiveMap",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      const node = detail.workflow === workflowId() ? nodeOfRun(detail.node) : null
      if (node?.comfyClass === APPLY) take(node, detail)
    })
  },
  nodeCreated(node) {
    if (node.comfyClass === APPLY) after(node, "onConfigure", () => show(node))
  },
})
