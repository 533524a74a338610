/** Badges on DraftAttention Sparse: how much faster the last run was, and what went wrong in it. Saved workflows keep them. */

import { addBadge, after, allNodes, api, app, badgesChanged, keepOnNode, nodeOfRun, workflowId } from "./host.js"
import { reasonWord } from "./map_drawing.js"
import { BADGES, onSetting, setting } from "./settings.js"
import { say } from "./words.js"

const APPLY = "ApplyDraftAttention"
const EVENT = "draftattention.run"
const KEPT = "draftattention_badges"
const [GOOD, BAD] = ["#235a78", "#8a2f2a"]
/** A factor that is told is larger than what one run and the next differ by. */
const LEAST = 1.05

/** @param {{speed_up: number|null, dense: string}} kept */
function textsOf({ speed_up, dense }) {
  const texts = []
  if (!setting(BADGES)) return texts
  if (typeof speed_up === "number" && speed_up >= LEAST) texts.push([say("badge_faster", { factor: speed_up.toFixed(1) }), GOOD])
  if (typeof dense === "string" && dense) texts.push([say("map_dense", { reason: reasonWord(dense) }), BAD])
  return texts
}

/** Give a node its badges, which say nothing while there is nothing to say. */
function add(node) {
  const Badge = globalThis.LGraphBadge
  if (!Badge || !Array.isArray(node.badges)) return
  for (const index of [0, 1])
    addBadge(node, () => {
      const [text, bgColor] = textsOf(node.properties?.[KEPT] ?? {})[index] ?? ["", GOOD]
      return new Badge({ text, bgColor, fgColor: "#fff" })
    })
}

app.registerExtension({
  name: "DraftAttention.RunBadges",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      const node = detail.workflow === workflowId() ? nodeOfRun(detail.node) : null
      if (node?.comfyClass !== APPLY) return
      keepOnNode(node, KEPT, detail.cancelled ? {} : { speed_up: detail.speed_up, dense: detail.dense })
      badgesChanged(node)
    })
    onSetting(() => allNodes().forEach((node) => node.comfyClass === APPLY && badgesChanged(node)))
  },
  nodeCreated(node) {
    if (node.comfyClass !== APPLY) return
    add(node)
    after(node, "onConfigure", () => badgesChanged(node))
  },
})
