/** Slots and links of this pack's own types have colours, in both renderers. */

import { app } from "./host.js"

const COLOURS = {
  SPARSITY_SCHEDULE: "#4fa3d1",
  DRAFT_ATTENTION_REPORT: "#d9a441",
  DRAFT_ATTENTION_CAPTURE: "#6fbf8f",
}

app.registerExtension({
  name: "DraftAttention.SlotColours",
  setup() {
    const links = app.canvas.constructor.link_type_colors
    for (const [type, colour] of Object.entries(COLOURS)) {
      app.canvas.default_connection_color_byType[type] = colour
      if (links) links[type] = colour
      document.documentElement.style.setProperty(`--color-datatype-${type}`, colour)
    }
  },
})
