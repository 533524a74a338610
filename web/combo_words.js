/** Choices of combos in words: the user's language says what a value means, and the value itself stays beside it. */

import { app, isOurs } from "./host.js"
import { say, wordOf } from "./words.js"

app.registerExtension({
  name: "DraftAttention.ComboWords",
  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return
    for (const widget of node.widgets ?? []) {
      const values = widget.options?.values
      if (!Array.isArray(values) || values.every((value) => wordOf(widget.name, value) === value)) continue
      // Both renderers ask for it; the value that is saved stays as it is.
      widget.options.getOptionLabel = (value) => {
        const word = wordOf(widget.name, value)
        return word === value ? String(value ?? "") : say("option_label", { word, value })
      }
    }
  },
})
