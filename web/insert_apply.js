/** An entry in the menu of loaders and samplers that puts DraftAttention Sparse between them. */

import { app, asOneStep, sourceOf } from "./host.js"
import { say } from "./words.js"

const APPLY = "ApplyDraftAttention"
const COMMAND = "DraftAttention.SpeedUp"
const MOST_NODES = 500
/** What a node that samples, or hands a model to one that does, gives out. */
const SAMPLED = new Set(["LATENT", "GUIDER"])
/** Room around nodes, and below them, where Nodes 2.0 adds a foot. */
const [GAP, FOOT] = [40, 60]

const inputOf = (node) => node.inputs?.find((input) => input.type === "MODEL")
const outputOf = (node) => node.outputs?.findIndex((output) => output.type === "MODEL") ?? -1
const samples = (node) =>
  Boolean(inputOf(node)) && outputOf(node) < 0 && Boolean(node.outputs?.some((output) => SAMPLED.has(output.type)))

/** The nodes that a model comes through before it reaches an input, the nearest first. */
function* before(node, input) {
  let source = sourceOf(node, input)
  for (let count = 0; source && count < MOST_NODES; count++) {
    yield source
    const next = inputOf(source.node)
    source = next ? sourceOf(source.node, next.name) : null
  }
}

/** Samplers that a node's model reaches; itself, if it is one. */
function samplersAfter(node) {
  const found = []
  const seen = new Set([node])
  const queue = [node]
  for (const one of queue) {
    if (samples(one)) found.push(one)
    const slot = outputOf(one)
    const next = slot < 0 ? [] : (one.getOutputNodes(slot) ?? [])
    for (const other of next)
      if (!seen.has(other) && seen.size < MOST_NODES) {
        seen.add(other)
        queue.push(other)
      }
  }
  return found
}

/**
 * Where an Apply is missing: the slots that models leave by, with the samplers that take them.
 * @returns {{node: object, slot: number, samplers: object[]}[]}
 */
function missing(node) {
  const places = []
  for (const sampler of samplersAfter(node)) {
    const sources = [...before(sampler, inputOf(sampler).name)]
    if (!sources.length || sources.some((source) => source.node.type === APPLY)) continue
    const [{ node: last, slot }] = sources
    const known = places.find((place) => place.node === last && place.slot === slot)
    if (known) known.samplers.push(sampler)
    else places.push({ node: last, slot, samplers: [sampler] })
  }
  // A loader that nothing is connected to gets one to go on from.
  const slot = outputOf(node)
  const unused = slot >= 0 && !inputOf(node) && !node.outputs[slot].links?.length
  return unused ? [{ node, slot, samplers: [] }] : places
}

/** Put a new node to the right of another. What is in its way moves to the right, with all that stands beyond. */
function place(made, beside) {
  const { graph } = made
  const edge = beside.pos[0] + beside.size[0]
  made.pos = [edge + GAP, beside.pos[1]]
  const nodes = (graph.nodes ?? graph._nodes).filter((other) => other !== made && other !== beside)
  const covered = (other) =>
    made.pos[0] < other.pos[0] + other.size[0] + GAP &&
    other.pos[0] < made.pos[0] + made.size[0] + GAP &&
    made.pos[1] - GAP < other.pos[1] + other.size[1] + FOOT &&
    other.pos[1] - GAP < made.pos[1] + made.size[1] + FOOT
  if (!nodes.some(covered)) return
  const groups = graph.groups ?? graph._groups ?? []
  for (const other of [...nodes, ...groups])
    if (other.pos[0] >= edge) other.pos = [other.pos[0] + made.size[0] + GAP, other.pos[1]]
  // What reaches across the edge stays, and the new node goes below it.
  while (nodes.some(covered)) made.pos = [made.pos[0], made.pos[1] + GAP]
}

/** Put DraftAttention Sparse between a model and the samplers that it reaches; undo takes all of it back at once. */
function insert(node) {
  const places = missing(node)
  if (!places.length) return
  asOneStep(() => {
    for (const { node: source, slot, samplers } of places) {
      const made = globalThis.LiteGraph.createNode(APPLY)
      if (!made) return
      node.graph.add(made)
      place(made, source)
      source.connect(slot, made, made.inputs.indexOf(inputOf(made)))
      for (const sampler of samplers) made.connect(outputOf(made), sampler, sampler.inputs.indexOf(inputOf(sampler)))
    }
  })
  app.canvas?.setDirty(true, true)
}

/** Whether the entry makes sense for a node. */
const offered = (node) => Boolean(node?.graph && node.inputs && node.outputs && node.type !== APPLY && missing(node).length)

app.registerExtension({
  name: "DraftAttention.InsertApply",
  commands: [
    {
      id: COMMAND,
      icon: "pi pi-bolt",
      label: () => say("speed_up"),
      function: () => Object.values(app.canvas?.selected_nodes ?? {}).filter(offered).forEach(insert),
    },
  ],
  getNodeMenuItems: (node) => (offered(node) ? [{ content: say("speed_up"), callback: () => insert(node) }] : []),
  getSelectionToolboxCommands: (item) => (offered(item) ? [COMMAND] : []),
})
