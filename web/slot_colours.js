/** Slots and links of this pack's own types have colours, in both renderers; a palette that names the types wins. */

import { app, addSheet } from "./host.js"

const COLOURS = {
  SPARSITY_SCHEDULE: "#4fa3d1",
  DRAFT_ATTENTION_REPORT: "#d9a441",
  DRAFT_ATTENTION_CAPTURE: "#6fbf8f",
  DRAFT_ATTENTION_PROFILE: "#b58adf",
}

/** Give a type a colour that stays when the front end, loading a palette, sets all types it does not name to "". */
function colour(table, type) {
  let chosen = table[type]
  Object.defineProperty(table, type, {
    configurable: true,
    enumerable: true,
    get: () => chosen || COLOURS[type],
    set: (value) => (chosen = value),
  })
}

app.registerExtension({
  name: "DraftAttention.SlotColours",
  setup() {
    const tables = [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors]
    for (const table of tables.filter(Boolean)) for (const type of Object.keys(COLOURS)) colour(table, type)
    const lines = Object.entries(COLOURS).map(([type, value]) => `--color-datatype-${type}: ${value};`)
    addSheet().textContent = `:root { ${lines.join(" ")} }`
  },
})
