/** Advanced inputs are folded away on the classic canvas too, with a button that unfolds them. */

import { app, fit, isLinked, isOurs, onChange } from "./host.js"
import { say } from "./words.js"

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets"

/** Fold everything advanced but what a link feeds, whose slot would go with it. */
function fold(node, advanced) {
  const always = app.extensionManager?.setting?.get?.(ALWAYS)
  for (const widget of advanced) widget.advanced = !always && !isLinked(node, widget.name)
}

app.registerExtension({
  name: "DraftAttention.FoldedInputs",
  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
    if (!advanced.length) return
    // Nodes 2.0 has a button of its own.
    const button = node.addWidget("button", "advanced", null, () => {
      node.toggleAdvanced()
      fit(node, true)
    }, { serialize: false, canvasOnly: true })
    button.serialize = false
    Object.defineProperty(button, "label", {
      configurable: true,
      get: () => say(node.showAdvanced ? "hide_advanced" : "show_advanced"),
      set: () => {},
    })
    onChange(node, () => fold(node, advanced))
    fold(node, advanced)
    fit(node, true)
  },
})
