/** The line that the host shows under a node while it runs, in the user's language. */

import { api, app, nodeOfRun, widgetOf, workflowId } from "./host.js"
import { tell } from "./words.js"

const EVENT = "draftattention.live_text"
const LIVE_TEXT = "$$node-text-preview"

app.registerExtension({
  name: "DraftAttention.LiveText",
  setup() {
    api.addEventListener(EVENT, ({ detail }) => {
      const node = detail.workflow === workflowId() ? nodeOfRun(detail.node) : null
      const widget = widgetOf(node, LIVE_TEXT)
      if (widget) widget.value = tell(detail.words)
    })
  },
})
