/** Choices of combos in words: the user's language says what a value means, and the value itself stays beside it. */

import { app, isOurs } from "./host.js"
import { find, say } from "./words.js"

app.registerExtension({
  name: "DraftAttention.ComboWords",
  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return
    for (const widget of node.widgets ?? []) {
      const keyOf = (value) => `option_${widget.name}_${value}`
      const values = widget.options?.values
      if (!Array.isArray(values) || !values.some((value) => find(keyOf(value)))) continue
      // Both renderers ask for it; the value that is saved stays as it is.
      widget.options.getOptionLabel = (value) => {
        const word = find(keyOf(value))
        return word && word !== value ? say("option_label", { word, value }) : String(value ?? "")
      }
    }
  },
})
