/** What Doctor, Report, Compare and Profile found, on the node itself. */

import { app, onOutput } from "./host.js"
import { addTextBox } from "./text_box.js"
import { say, tell } from "./words.js"

const HINTS = {
  DraftAttentionDoctor: "doctor_empty",
  DraftAttentionReport: "report_empty",
  DraftAttentionCompare: "compare_empty",
  DraftAttentionProfile: "profile_empty",
}
const WIDTH = 420
/** @type {WeakMap<object, (text: string) => void>} */
const boxes = new WeakMap()

/** Show the text among a node's outputs, if it is one of ours and there is any. */
function show(node, output) {
  const text = output?.text
  if (!boxes.has(node) || text === undefined) return
  const [words] = output.draftattention_words ?? []
  boxes.get(node)(words === undefined ? [text].flat().join("\n") : tell(words))
}

app.registerExtension({
  name: "DraftAttention.TextOnNode",
  nodeCreated(node) {
    const hint = HINTS[node.comfyClass]
    if (!hint) return
    boxes.set(node, addTextBox(node, "text", say(hint)))
    node.setSize([Math.max(node.size[0], WIDTH), node.computeSize()[1]])
  },
})

onOutput("DraftAttention.Outputs", show)
