/** Badges on Apply DraftAttention: how much faster the last run was, and what went wrong in it. Saved workflows keep them. */

import { after, api, app, nodeOfRun, workflowId } from "./host.js"
import { reasonWord } from "./map_drawing.js"
import { say } from "./words.js"

const APPLY = "ApplyDraftAttention"
const EVENT = "draftattention.run"
const KEPT = "draftattention_badges"
const [GOOD, BAD] = ["#235a78", "#8a2f2a"]
/** A factor that is told is larger than what one run and the next differ by. */
const LEAST = 1.05

/** Badges of a node by what it keeps. @type {WeakMap<object, object[]>} */
const shown = new WeakMap()

/** @param {{speed_up: number|null, dense: string}} kept */
function textsOf({ speed_up, dense }) {
  const texts = []
  if (typeof speed_up === "number" && speed_up >= LEAST) texts.push([say("badge_faster", { factor: speed_up.toFixed(1) }), GOOD])
  if (typeof dense === "string" && dense) texts.push([say("map_dense", { reason: reasonWord(dense) }), BAD])
  return texts
}

/** Nodes 2.0 notices another list of badges, and none that is put into the one it knows. */
function show(node) {
  const Badge = globalThis.LGraphBadge
  if (!Badge || !Array.isArray(node.badges)) return
  const own = textsOf(node.properties?.[KEPT] ?? {}).map(([text, bgColor]) => new Badge({ text, bgColor, fgColor: "#fff" }))
  const before = shown.get(node) ?? []
  if (!own.length && !before.length) return
  shown.set(node, own)
  node.badges = [...node.badges.filter((badge) => !before.includes(badge)), ...own]
  app.canvas?.setDirty(true, true)
}

app.registerExtension({
  name: "DraftAttention.RunBadges",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      const node = detail.workflow === workflowId() ? nodeOfRun(detail.node) : null
      if (node?.comfyClass !== APPLY) return
      node.properties[KEPT] = detail.cancelled ? {} : { speed_up: detail.speed_up, dense: detail.dense }
      show(node)
    })
  },
  nodeCreated(node) {
    if (node.comfyClass === APPLY) after(node, "onConfigure", () => show(node))
  },
})
