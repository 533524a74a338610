/** Advanced inputs are folded away on the classic canvas too, with a button that unfolds them. */

import { after, app, fit, isLinked, isOurs, onChange } from "./host.js"
import { say } from "./words.js"

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets"

/** Whether advanced inputs are out of sight: they are not, where the user wants to see those of all nodes. */
const folded = (node) => !node.showAdvanced && !app.extensionManager?.setting?.get?.(ALWAYS)

/**
 * Fold everything advanced but what a link feeds, whose slot would go with it.
 *
 * `advanced` alone would leave gaps on the classic canvas. Newer front ends have a visibility per renderer. Older ones
 * close the gap of `hidden` widgets, and their Nodes 2.0 does not look at that property.
 */
function fold(node, advanced) {
  for (const widget of advanced) {
    const linked = isLinked(node, widget.name)
    const away = folded(node) && !linked
    widget.advanced = !linked
    if (widget.visibility?.surfaces) widget.visibility.surfaces.canvas = away ? "never" : "shown"
    else widget.hidden = away
  }
}

app.registerExtension({
  name: "DraftAttention.FoldedInputs",
  nodeCreated(node) {
    if (!isOurs(node.comfyClass)) return
    const advanced = (node.widgets ?? []).filter((widget) => widget.options?.advanced)
    if (!advanced.length) return
    let shown
    const update = () => {
      fold(node, advanced)
      shown = folded(node)
    }
    // Nodes 2.0 has a button of its own.
    const button = node.addWidget("button", "advanced", null, () => {
      node.showAdvanced = !node.showAdvanced
      update()
      fit(node, true)
    }, { serialize: false, canvasOnly: true })
    button.serialize = false
    Object.defineProperty(button, "label", {
      configurable: true,
      get: () => say(folded(node) ? "show_advanced" : "hide_advanced"),
      set: () => {},
    })
    onChange(node, update)
    // The host's own menu folds too, and so does a setting. Nodes 2.0 does not call this.
    after(node, "onDrawForeground", () => shown !== folded(node) && update())
    update()
    fit(node, true)
  },
})
