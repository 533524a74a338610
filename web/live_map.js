/** Under DraftAttention Sparse: what each layer did at each step, filling in while sampling and kept in the workflow. */

import { addElement, after, allNodes, api, app, fit, keepOnNode, nodeOfRun, removeWidget, widgetOf, workflowId } from "./host.js"
import { drawMap, duration, keyElements, MOST_LAYERS, MOST_STEPS } from "./map_drawing.js"
import { LIVE_MAP, onSetting, setting } from "./settings.js"
import { say } from "./words.js"

const APPLY = "ApplyDraftAttention"
const EVENT = "draftattention.live_map"
const KEPT = "draftattention_map"
const HEIGHT = 150

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

/** Time per step, and how long the rest will take at the pace of the run so far. */
function textOf(map) {
  const done = map.reached
  const pace = map.seconds / done
  const values = { step: done, steps: map.steps ?? done, pace: duration(pace), total: duration(map.seconds) }
  if (map.done) return say("map_done", { ...values, steps: done })
  return map.steps ? say("map_step_of", { ...values, left: duration(pace * (map.steps - done)) }) : say("map_step", values)
}

function draw(node) {
  const map = node.properties?.[KEPT]
  if (map && views.has(node)) drawMap(views.get(node).canvas, map)
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
  addElement(node, "live_map", box, () => HEIGHT, true)
  globalThis.ResizeObserver && new ResizeObserver(() => draw(node)).observe(canvas)
  fit(node)
}

/** Show what a node keeps; a node that keeps nothing, or is to show nothing, looks as if there were no map. */
function show(node) {
  if (!setting(LIVE_MAP)) {
    if (views.delete(node)) removeWidget(node, widgetOf(node, "live_map"))
    return
  }
  const map = node.properties?.[KEPT]
  if (!Array.isArray(map?.rows) || !map.rows.length || !node.addDOMWidget) return
  if (!views.has(node)) addView(node)
  const view = views.get(node)
  view.text.textContent = textOf(map)
  view.key.replaceChildren(...keyElements(map))
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
  keepOnNode(node, KEPT, map, map.done)
  show(node)
}

app.registerExtension({
  name: "DraftAttention.LiveMap",
  setup() {
    onSetting(() => allNodes().forEach((node) => node.comfyClass === APPLY && show(node)))
    api.addEventListener(EVENT, ({ detail }) => {
      const node = detail.workflow === workflowId() ? nodeOfRun(detail.node) : null
      if (node?.comfyClass === APPLY) take(node, detail)
    })
  },
  nodeCreated(node) {
    if (node.comfyClass === APPLY) after(node, "onConfigure", () => show(node))
  },
})
