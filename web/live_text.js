/** The line that the host shows under a node while it runs, in the user's language. */

import { api, app, nodeOfRun, widgetOf, workflowId } from "./host.js"
import { LIVE_TEXT, removeRepeated } from "./last_verdict.js"
import { tell } from "./words.js"

const EVENT = "draftattention.live_text"

app.registerExtension({
  name: "DraftAttention.LiveText",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      const node = detail.workflow === workflowId() ? nodeOfRun(detail.node) : null
      const widget = widgetOf(node, LIVE_TEXT)
      if (!widget) return
      widget.value = tell(detail.words)
      removeRepeated(node)
    })
  },
})
