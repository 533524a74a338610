/** How the last run went stays under DraftAttention Sparse: until the next run, after a reload, in a saved workflow. */

import { api, allNodes, app, after, keepOnNode, nodeOfRun, removeWidget, widgetOf, workflowId } from "./host.js"
import { onProblems, problemsOf } from "./checked_text.js"
import { addTextBox } from "./text_box.js"
import { say, tell } from "./words.js"

const APPLY = "ApplyDraftAttention"
const EVENT = "draftattention.verdict"
const KEPT = "draftattention_verdict"
/** Name of the widget in which the front end shows texts of nodes that run. */
export const LIVE_TEXT = "$$node-text-preview"

/** @type {WeakMap<object, (text: string, wrong?: string) => void>} */
const boxes = new WeakMap()

/** How the last run went, in the user's language; empty if there was none. */
function verdictOf(node) {
  const { text = "", words } = node.properties?.[KEPT] ?? {}
  return words ? tell(words) : text
}

/** Show what a node keeps, and what is wrong with its texts. */
function show(node) {
  boxes.get(node)?.(verdictOf(node), Object.values(problemsOf(node)).join("\n"))
}

/** Keep a verdict on a node, unless it has a later one. */
function keep(node, verdict) {
  if (node?.comfyClass !== APPLY || node.properties[KEPT]?.at >= verdict.at) return
  keepOnNode(node, KEPT, { text: verdict.text, words: verdict.words, at: verdict.at })
  show(node)
  removeRepeated(node)
}

/** The run's last line is the verdict: take it away where the verdict stands, whichever of the two came first. */
export function removeRepeated(node) {
  const widget = widgetOf(node, LIVE_TEXT)
  const said = widget && boxes.has(node) && [verdictOf(node), node.properties[KEPT]?.text]
  if (said && said.includes(String(widget.value))) removeWidget(node, widget)
}

/** What else the front end has shown while nodes ran: older ones leave it there. */
function removeLiveTexts() {
  for (const node of allNodes()) {
    const widget = node.comfyClass === APPLY && node.properties?.[KEPT] && widgetOf(node, LIVE_TEXT)
    if (widget) removeWidget(node, widget)
  }
}

/** Verdicts of runs that ended while this page was not there. */
async function fetchMissed() {
  const workflow = workflowId()
  if (!workflow || !allNodes().some((node) => node.comfyClass === APPLY)) return
  const known = await api.fetchApi("/draftattention/verdicts").catch(() => null)
  if (!known?.ok || !(await known.json()).includes(workflow)) return
  const answer = await api.fetchApi(`/draftattention/verdicts/${encodeURIComponent(workflow)}`)
  if (!answer.ok || workflow !== workflowId()) return
  for (const [id, verdict] of Object.entries(await answer.json())) keep(nodeOfRun(id), verdict)
}

app.registerExtension({
  name: "DraftAttention.LastVerdict",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      if (detail.workflow === workflowId()) keep(nodeOfRun(detail.node), detail)
    })
    for (const end of ["execution_success", "execution_error", "execution_interrupted"])
      api.addEventListener(end, () => setTimeout(removeLiveTexts))
    onProblems((node) => boxes.has(node) && show(node))
  },
  nodeCreated(node) {
    if (node.comfyClass !== APPLY) return
    boxes.set(node, addTextBox(node, "verdict", say("no_run")))
    after(node, "onConfigure", () => show(node))
  },
  afterConfigureGraph: () => void fetchMissed(),
})
