/** Texts that the server could not read are marked while they are typed, and say what to write instead. */

import { addSheet, api, app, isLinked, onChange, setTooltip, widgetOf, widgetRules } from "./host.js"
import { labelOf, tell } from "./words.js"

/** The widgets whose values the server parses, and those it needs to judge them; see nodes/inputs/checks.py. */
const CHECKED = {
  ApplyDraftAttention: ["tile", "dense_layers", "blocks"],
  SparsityScheduler: ["points", "layer_bands", "dense_layers", "curve"],
  DraftAttentionReport: ["filename_prefix"],
  DraftAttentionCalibrate: ["name", "expert"],
}
const PAUSE = 200
const MARK = "⚠ "

/** @type {WeakMap<object, {asked: string, problems: Record<string, string>, timer: number}>} */
const states = new WeakMap()
/** @type {Set<(node: object) => void>} */
const listeners = new Set()
const marks = addSheet()

/** What is wrong with a node's texts, by input, as far as the server has answered. */
export const problemsOf = (node) => states.get(node)?.problems ?? {}

/** Have `listener(node)` called when a node's problems change. */
export const onProblems = (listener) => listeners.add(listener)

/** Ask the server about a node's texts, a moment after the last change. */
function check(node) {
  const state = states.get(node)
  const values = {}
  for (const name of CHECKED[node.comfyClass]) {
    const value = widgetOf(node, name)?.value
    if (typeof value === "string" && !isLinked(node, name)) values[name] = value
  }
  const asked = JSON.stringify({ node: node.comfyClass, values })
  if (asked === state.asked) return
  state.asked = asked
  clearTimeout(state.timer)
  state.timer = setTimeout(async () => {
    const answer = await api.fetchApi("/draftattention/check", { method: "POST", body: asked }).catch(() => null)
    if (!answer?.ok || state.asked !== asked) return
    const found = Object.entries(await answer.json())
    state.problems = Object.fromEntries(found.map(([name, told]) => [name, tell(labelled(node, name, told))]))
    mark(node, state.problems)
    for (const listener of listeners) listener(node)
  }, PAUSE)
}

/** A problem whose input is called as its widget is labelled. */
function labelled(node, name, told) {
  if (told?.values?.input !== name) return told
  return { ...told, values: { ...told.values, input: labelOf(node.comfyClass, name) } }
}

/** Mark what is wrong, and only that. */
function mark(node, problems) {
  for (const name of CHECKED[node.comfyClass]) {
    const widget = widgetOf(node, name)
    if (!widget) continue
    const wrong = name in problems
    const label = (widget.label ?? widget.name).replace(MARK, "")
    if (wrong || widget.label?.startsWith(MARK)) {
      widget.label = wrong ? MARK + label : label
      setTooltip(node, widget, problems[name])
    }
    redden(widget, wrong)
  }
  marks.textContent = widgetRules((one) => Object.keys(problemsOf(one)), "outline: 1px solid #e5534b;")
  app.canvas?.setDirty(true, true)
}

/** The classic canvas asks the widget for its colours. */
function redden(widget, wrong) {
  if (!wrong) return void delete widget.text_color
  Object.defineProperty(widget, "text_color", { configurable: true, get: () => "#e5534b" })
}

app.registerExtension({
  name: "DraftAttention.CheckedText",
  nodeCreated(node) {
    if (!CHECKED[node.comfyClass]) return
    states.set(node, { asked: "", problems: {}, timer: 0 })
    onChange(node, check)
  },
})
