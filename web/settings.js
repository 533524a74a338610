/** What users may choose for the pack as a whole, among the settings of the front end. */

import { app } from "./host.js"

export const LIVE_MAP = "DraftAttention.Display.LiveMap"
export const BADGES = "DraftAttention.Display.Badges"
export const CLIP_RATE = "DraftAttention.Display.ClipRate"

const DEFAULTS = { [LIVE_MAP]: true, [BADGES]: true, [CLIP_RATE]: 16 }
/** @type {Set<() => void>} */
const listeners = new Set()

/** A setting's value; its default where the front end does not know it. */
export const setting = (id) => app.extensionManager?.setting?.get?.(id) ?? DEFAULTS[id]

/** Have `listener()` called when one of the settings changes. */
export const onSetting = (listener) => listeners.add(listener)

/** The front end shows the last part of the category as a heading, and tells of a change while it begins, too. */
function entry(id, type, name, tooltip, more = {}) {
  const onChange = () => listeners.forEach((listener) => listener())
  return { id, type, name, tooltip, category: ["DraftAttention", "Nodes", name], defaultValue: DEFAULTS[id], onChange, ...more }
}

app.registerExtension({
  name: "DraftAttention.Settings",
  settings: [
    entry(LIVE_MAP, "boolean", "Show the map of steps and layers", "Under the node, while it samples and after it."),
    entry(BADGES, "boolean", "Show badges", "How much faster the last run was, and why calls were dense."),
    entry(CLIP_RATE, "number", "Frames per second of clips on nodes", "What most video models make is 16 to 24.", {
      attrs: { min: 1, max: 60, step: 1 },
    }),
  ],
})
