/** Inputs that count for nothing now are greyed out, and their tooltips say what overrules them. */

import { addSheet, api, allNodes, app, hints, isLinked, onChange, setTooltip, sourceOf, widgetOf, widgetRules } from "./host.js"
import { samplerOf } from "./sampler_steps.js"
import { say } from "./words.js"

const APPLY = "ApplyDraftAttention"
const SCHEDULER = "SparsityScheduler"
const SKIP = "DraftAttentionSkipSteps"
/** @type {WeakMap<object, Map<string, string>>} why inputs of a node are greyed out, by input */
const greyed = new WeakMap()
const sheet = addSheet()

/** Why inputs of DraftAttention Sparse count for nothing, by input. */
function overruledOnApply(node) {
  const told = hints(APPLY, "preset")
  const { by_preset = {}, by_schedule = [], by_max_error = [], by_speed = {}, speed_replaces = [], by_method = {} } = told
  const preset = widgetOf(node, "preset")?.value
  const reason = isPublished(preset) ? say("by_paper", { preset }) : say("by_preset", { preset })
  const found = new Map((by_preset[preset] ?? []).map((name) => [name, reason]))
  const speed = widgetOf(node, "speed")?.value ?? "off"
  if (!found.has("speed") && speed !== "off") {
    for (const name of by_speed[speed] ?? []) found.set(name, say("by_speed", { speed }))
    if (speed_replaces.includes(preset))
      for (const name of ["preset", ...(by_preset[preset] ?? [])]) found.set(name, say("speed_replaces", { speed }))
  }
  const method = widgetOf(node, "method")?.value ?? "auto"
  if (!found.has("method"))
    for (const name of by_method[method] ?? []) found.set(name, say("by_method", { method }))
  if (widgetOf(node, "max_error")?.value > 0) for (const name of by_max_error) found.set(name, say("by_max_error"))
  if (!isLinked(node, "schedule")) return found
  for (const name of by_schedule) found.set(name, say("by_schedule"))
  const source = sourceOf(node, "schedule")?.node
  if (source?.comfyClass === SCHEDULER && widgetOf(source, "dense_layers")?.value?.trim())
    found.set("dense_layers", say("schedule_layers"))
  return found
}

/** Why inputs of the Sparsity Scheduler count for nothing, by input. */
function overruledOnScheduler(node) {
  const { by_curve = {} } = hints(SCHEDULER, "curve")
  const curve = widgetOf(node, "curve")?.value
  const reason = by_curve[curve]?.includes("density") ? say("by_points") : say("by_curve", { curve })
  const found = new Map((by_curve[curve] ?? []).map((name) => [name, reason]))
  if (isLinked(node, "drawn_curve")) for (const name of ["curve", "density", "points"]) found.set(name, say("by_drawn"))
  if (widgetOf(node, "end_share")?.value === 0) found.set("end_density", say("no_end"))
  const sampler = samplerOf(node)
  if (sampler) found.set("steps", sampler.reason)
  return found
}

/** Why inputs of Skip Steps count for nothing, by input. */
function overruledOnSkip(node) {
  const rule = widgetOf(node, "rule")?.value
  const names = hints(SKIP, "rule").by_rule?.[rule] ?? []
  return new Map(names.map((name) => [name, say("by_rule", { rule })]))
}

/** What finds them, by class of node. */
const OVERRULED = new Map([
  [APPLY, overruledOnApply],
  [SCHEDULER, overruledOnScheduler],
  [SKIP, overruledOnSkip],
])

/** Grey out what is overruled and bring back what no longer is. */
function update(node) {
  const found = OVERRULED.get(node.comfyClass)(node)
  const before = greyed.get(node) ?? new Map()
  for (const widget of node.widgets ?? []) {
    const reason = found.get(widget.name)
    if (reason === undefined && !before.has(widget.name)) continue
    widget.disabled = reason !== undefined
    setTooltip(node, widget, reason)
  }
  greyed.set(node, found)
  if (node.comfyClass === APPLY) labelPreset(node)
  else if (node.comfyClass === SCHEDULER) takeSteps(node)
  app.canvas?.setDirty(true, true)
}

/** Whether a preset is somebody's published method, whose own way to choose blocks stays. */
function isPublished(preset) {
  return hints(APPLY, "preset").by_preset?.[preset]?.includes("method") ?? preset === "paper"
}

/** With a schedule the preset only tells published methods from the rest: its label says so. */
function labelPreset(node) {
  const widget = widgetOf(node, "preset")
  if (!widget) return
  node.draftattentionPresetLabel ??= { label: widget.label }
  const plain = node.draftattentionPresetLabel.label
  const curveOnly = isLinked(node, "schedule") && !isPublished(widget.value)
  widget.label = curveOnly ? say("preset_curve", { name: plain ?? widget.name }) : plain
  if (!greyed.get(node)?.has("preset")) setTooltip(node, widget, curveOnly ? say("preset_curve_tip") : undefined)
}

/** The picture of the schedule is drawn for the steps that the sampler will take. */
function takeSteps(node) {
  const sampler = samplerOf(node)
  const widget = widgetOf(node, "steps")
  if (sampler && widget && widget.value !== sampler.whole && !isLinked(node, "steps")) widget.value = sampler.whole
}

/** Everything again: a node elsewhere may have changed. */
function updateAll() {
  for (const node of allNodes()) if (OVERRULED.has(node.comfyClass)) update(node)
  sheet.textContent = widgetRules((node) => greyed.get(node)?.keys() ?? [], "opacity: 0.5;")
}

app.registerExtension({
  name: "DraftAttention.OverruledInputs",
  setup() {
    api.addEventListener("graphChanged", updateAll)
  },
  nodeCreated(node) {
    if (!OVERRULED.has(node.comfyClass)) return
    onChange(node, updateAll)
    // The front end calls this before it reads the values for the server.
    const first = node.widgets?.[0]
    if (first) first.beforeQueued = updateAll
  },
  afterConfigureGraph: () => queueMicrotask(updateAll),
})
