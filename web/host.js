/** What this pack knows of the front end's inner life. Everything else here goes through this file. */

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

export { api, app }

/**
 * @typedef {object} Widget what users edit on a node
 * @property {string} name
 * @property {*} value
 * @property {boolean} [disabled]
 * @property {string} [tooltip]
 * @property {string} [label]
 * @property {Function} [callback]
 */

/** Name of the category that all nodes of this pack share. */
const CATEGORY = "draft attention"
/** @type {Map<string, object>} definitions of this pack's nodes, as the server sent them, by class. */
const definitions = new Map()

app.registerExtension({
  name: "DraftAttention.Definitions",
  beforeRegisterNodeDef(_type, definition) {
    if (definition.category?.includes(CATEGORY)) definitions.set(definition.name, definition)
  },
})

/** What the server says for the browser alone about an input; see `extra_dict` in the Python of the node. */
export function hints(kind, input) {
  const { required = {}, optional = {} } = definitions.get(kind)?.input ?? {}
  return (required[input] ?? optional[input])?.[1]?.draftattention ?? {}
}

/** What a class of nodes is called in the user's language. */
export const nameOfKind = (kind) => globalThis.LiteGraph?.registered_node_types?.[kind]?.title ?? kind

/** Whether a class of nodes is this pack's. */
export const isOurs = (kind) => definitions.has(kind)

/** Whether nodes are drawn by Nodes 2.0 and not by the classic canvas. */
export const isNodes2 = () => Boolean(globalThis.LiteGraph?.vueNodesMode)

/** @returns {Widget|undefined} */
export const widgetOf = (node, name) => node?.widgets?.find((widget) => widget.name === name)

/** Run `extra` after `object[method]`, with the same `this` and arguments. */
export function after(object, method, extra) {
  const before = object[method]
  object[method] = function (...values) {
    const result = before?.apply(this, values)
    extra.apply(this, values)
    return result
  }
}

/** The node that the server calls "12", or "5:12" inside subgraph node 5. */
export function nodeOfRun(id) {
  let graph = app.rootGraph ?? app.graph
  let node = null
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part) ?? null
    graph = node?.subgraph
  }
  return node
}

/** The node behind a key of the front end's outputs: "12", or "<id of a subgraph>:12". */
export function nodeOfOutput(key) {
  const root = app.rootGraph ?? app.graph
  const cut = key.lastIndexOf(":")
  const graph = cut < 0 ? root : root.subgraphs?.get(key.slice(0, cut))
  const id = key.slice(cut + 1)
  return graph?.getNodeById(Number(id)) ?? graph?.getNodeById(id) ?? null
}

/**
 * Have `show(node, output)` called with what a node of this pack sent: when it has run, and when another tab's workflow
 * comes back with its outputs, on nodes made anew.
 * @param {string} name of the extension
 */
export function onOutput(name, show) {
  const tell = (node, output) => node && output && isOurs(node.comfyClass) && show(node, output)
  const tellAll = (outputs) => {
    for (const [key, output] of Object.entries(outputs)) tell(nodeOfOutput(key), output)
  }
  app.registerExtension({
    name,
    setup() {
      const heard = ({ detail }) => tell(nodeOfRun(detail.display_node || detail.node), detail.output)
      api.addEventListener("executed", heard)
    },
    // Undo makes nodes anew and leaves their outputs where they are.
    afterConfigureGraph: () => tellAll(app.nodeOutputs ?? {}),
    onNodeOutputsUpdated: tellAll,
  })
}

/** All nodes of the workflow, those inside subgraphs included. */
export function allNodes() {
  const root = app.rootGraph ?? app.graph
  return [root, ...(root?.subgraphs?.values() ?? [])].flatMap((graph) => graph?.nodes ?? [])
}

/** Id of the open workflow; empty where it has none of its own. */
export function workflowId() {
  const id = (app.rootGraph ?? app.graph)?.id ?? ""
  return /[1-9a-f]/.test(id) ? id : ""
}

/** The node and slot that feed an input, or null. */
export function sourceOf(node, input) {
  const slot = node.inputs?.findIndex((one) => one.name === input) ?? -1
  if (slot < 0 || node.inputs[slot].link == null) return null
  const link = node.getInputLink?.(slot)
  const source = node.getInputNode?.(slot)
  return source ? { node: source, slot: link?.origin_slot ?? 0 } : null
}

/** Whether an input is fed by a link. */
export const isLinked = (node, input) => node.inputs?.some((one) => one.name === input && one.link != null) ?? false

/** Have `watch(node)` called when a widget or a link of the node changes, and when its values were loaded. */
export function onChange(node, watch) {
  for (const widget of node.widgets ?? []) after(widget, "callback", () => watch(node))
  after(node, "onConnectionsChange", () => queueMicrotask(() => watch(node)))
  after(node, "onConfigure", () => queueMicrotask(() => watch(node)))
  queueMicrotask(() => watch(node))
}

/**
 * Change what a widget's tooltip says; undefined brings back the one of its input.
 * @param {Widget} widget
 */
export function setTooltip(node, widget, text) {
  if (widget.tooltip === text) return
  widget.tooltip = text
  // The classic canvas reads the tooltip when it shows it. Nodes 2.0 keeps a copy: newer front ends renew it when the
  // widget is registered again, older ones when the list of widgets changes.
  widget.setNodeId?.(node.id)
  if (isNodes2() && node.widgets.length) node.widgets.push(node.widgets.pop())
}

/** By how much the classic canvas moves an element up to another of ours; see the style sheet. */
const CLOSER = 12

/** Tells the language of what elements say. */
let spoken = () => "en"

/** Have elements say that they are in the language that `language()` tells. */
export const inLanguage = (language) => void (spoken = language)

/** The language that elements are in. */
export const elementLanguage = () => spoken()

/**
 * Add an element to a node, in both renderers. It is part of neither the saved values nor the prompt.
 * @param {() => number} height least height in pixels
 * @param {boolean} [below] whether another element of ours stands right above it
 */
export function addElement(node, name, element, height, below = false) {
  element.dataset.draftattention = name
  element.lang = spoken()
  element.classList.toggle("draftattention-below", below)
  const widget = node.addDOMWidget(name, `draftattention_${name}`, element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => height() - (below && !isNodes2() ? CLOSER : 0),
    getValue: () => "",
    setValue: () => {},
  })
  widget.serialize = false
  return widget
}

/** Have `watch` called when the colours of the page may have changed. */
export function onTheme(watch) {
  const theme = new MutationObserver(() => requestAnimationFrame(watch))
  for (const element of [document.documentElement, document.body])
    theme.observe(element, { attributes: true, attributeFilter: ["class", "style", "data-theme"] })
}

/** Take a widget off a node, which shrinks to what is left. */
export function removeWidget(node, widget) {
  if (node.removeWidget) node.removeWidget(widget)
  else {
    widget.onRemove?.()
    node.widgets.splice(node.widgets.indexOf(widget), 1)
  }
  fit(node, true)
}

/**
 * Put the elements of nodes that were made anew where those of their predecessors are. Undo makes nodes anew under the
 * same ids, and Nodes 2.0 goes on showing the elements that it took when it first drew a node of that id.
 */
function replaceElements() {
  if (!isNodes2()) return
  for (const node of app.canvas?.graph?.nodes ?? [])
    for (const { element } of node.widgets ?? []) {
      const name = element?.dataset?.draftattention
      if (!name || element.isConnected) continue
      document.querySelector(`[data-node-id="${node.id}"] [data-draftattention="${name}"]`)?.replaceWith(element)
    }
}

app.registerExtension({
  name: "DraftAttention.Elements",
  // At once and when Nodes 2.0 has drawn, which it does a little later.
  afterConfigureGraph: () => [0, 100, 500].forEach((delay) => setTimeout(replaceElements, delay)),
})

/** Make a node at least as high as what is in it, and no higher than that if `shrink`; no step to undo. */
export function fit(node, shrink = false) {
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), shrink ? height : Math.max(node.size[1], height)])
  const saved = savedNode(changeTracker()?.activeState, node)
  if (saved) saved.size = [...node.size]
  app.canvas?.setDirty(true, true)
}

/**
 * Add a badge to a node. Nodes 2.0 of newer front ends makes it again when something has changed that it has read, and
 * knows of widgets only; see `badgesChanged`.
 * @param {() => object} make
 */
export function addBadge(node, make) {
  node.badges.push(() => (node.widgets?.[0]?.value, make()))
}

/** Have both renderers show what a node's badges say now. */
export function badgesChanged(node) {
  app.canvas?.setDirty(true, true)
  if (!isNodes2() || !node.graph) return
  const [widget] = node.widgets ?? []
  if (widget) {
    const { value } = widget
    widget.value = null
    widget.value = value
  }
  const change = { nodeId: node.id, property: "badges", oldValue: null, newValue: [...node.badges] }
  node.graph.trigger?.("node:property:changed", change)
}

/** Undo and redo see everything that `change` does as one step. */
export function asOneStep(change) {
  const graph = app.canvas?.graph ?? app.graph
  graph.beforeChange?.()
  try {
    change()
  } finally {
    graph.afterChange?.()
    keepState()
  }
}

/** Have the front end notice what scripts changed in the workflow. */
function keepState() {
  const tracker = changeTracker()
  if (tracker?.captureCanvasState) tracker.captureCanvasState()
  else tracker?.checkState?.()
}

const changeTracker = () => app.extensionManager?.workflow?.activeWorkflow?.changeTracker

/** A node as a saved state of the workflow has it, or undefined. */
function savedNode(state, node) {
  const { graph } = node
  const whole = graph === (app.rootGraph ?? app.graph)
  const saved = whole ? state : state?.definitions?.subgraphs?.find(({ id }) => id === graph?.id)
  return saved?.nodes?.find?.(({ id }) => String(id) === String(node.id))
}

/**
 * Keep on a node what a run came to, in the saved workflow too. Nobody chose it, so it is no step to undo, and undoing
 * something else does not take it away.
 * @param {boolean} [lasting] whether it has to be there after a reload, as what a run has so far need not
 */
export function keepOnNode(node, name, value, lasting = true) {
  node.properties[name] = value
  const tracker = changeTracker()
  const { activeState, undoQueue = [], redoQueue = [] } = tracker ?? {}
  for (const state of [activeState, ...undoQueue, ...redoQueue]) {
    const saved = savedNode(state, node)
    if (saved) saved.properties = { ...saved.properties, [name]: value }
  }
  // Older front ends that queue on every change would queue because of this one.
  if (lasting && app.extensionManager?.queueSettings?.mode !== "change") tracker?.updateModified?.()
}

/** A style sheet of one's own. Elements of Nodes 2.0 come and go: rules find them where scripts would lose them. */
export function addSheet() {
  const sheet = document.createElement("style")
  document.head.append(sheet)
  return sheet
}

/**
 * Rules for widgets of the nodes in view, in Nodes 2.0.
 * @param {(node: object) => Iterable<string>} names of the widgets that get the style
 */
export function widgetRules(names, style) {
  const rules = []
  for (const node of app.canvas?.graph?.nodes ?? [])
    for (const name of names(node)) {
      const place = `[data-node-id="${node.id}"]`
      rules.push(`${place} [data-widget-name="${name}"], ${place} input[aria-label="${name}"] { ${style} }`)
    }
  return rules.join("\n")
}

const sheet = document.createElement("link")
sheet.rel = "stylesheet"
sheet.href = new URL("./draftattention.css", import.meta.url).href
document.head.append(sheet)
