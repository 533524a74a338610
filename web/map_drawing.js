/** The picture of a run: steps from left to right, layers from top to bottom, a colour for what each layer did. */

import { sharpen } from "./clip_sheet.js"
import { say } from "./words.js"

export const MOST_STEPS = 100
export const MOST_LAYERS = 128
/** Why a layer was dense, in the order of the server's numbers -2, -3, ... */
const REASONS = [
  ["schedule", "#8a8f98"],
  ["dense layer", "#b3a27a"],
  ["too few tokens", "#c98b4a"],
  ["not self-attention", "#777777"],
  ["unknown token grid", "#d9534f"],
  ["tokens not accounted for", "#c94f7c"],
  ["mask", "#e5534b"],
  ["no backend", "#b03a3a"],
  ["budget", "#9a86c9"],
  ["settings for another number of heads", "#d96aa0"],
  ["non-finite output", "#ff3b30"],
  ["out of memory", "#ff6a00"],
  ["error", "#ff0033"],
  ["stood aside after errors", "#a80f2f"],
]
const SKIPPED = "#6fbf8f"

/**
 * @typedef {object} StepMap what every layer did at every step
 * @property {number|null} steps of the sampler
 * @property {number} layers how many the model has
 * @property {{step: number, skipped: boolean, cells: number[]}[]} rows by step; for the cells see the server's `cell`
 */

/** A dense reason of the server's in the user's language; one that is not known here, as it is. */
export function reasonWord(reason) {
  const key = `reason_${reason}`
  const word = say(key)
  return word === key ? reason : word
}

/** The colour of a cell: the fewer blocks a sparse layer computed, the brighter; null where nothing is known. */
function colourOf(cell) {
  if (cell >= 0) return `hsl(202 ${45 + 0.35 * (100 - cell)}% ${30 + 0.4 * (100 - cell)}%)`
  return REASONS[-2 - cell]?.[1] ?? null
}

/** @param {StepMap} map */
const stepsOf = (map) => Math.min(MOST_STEPS, Math.max(map.steps ?? 0, ...map.rows.map((row) => row.step + 1), 1))

/** Draw the cells, sharp at any zoom. Without a size there is nothing to draw. */
export function drawMap(canvas, map) {
  if (!sharpen(canvas)) return
  const scale = canvas.width / canvas.clientWidth
  const pen = canvas.getContext("2d")
  const layers = Math.max(1, ...map.rows.map((row) => row.cells.length))
  const [wide, high] = [canvas.width / stepsOf(map), canvas.height / layers]
  const [gapX, gapY] = [wide > 6 * scale ? scale : 0, high > 4 * scale ? scale : 0]
  for (const row of map.rows) {
    const cells = row.skipped ? [null] : row.cells
    const tall = row.skipped ? canvas.height : high
    cells.forEach((cell, layer) => {
      const colour = row.skipped ? SKIPPED : colourOf(cell)
      if (!colour) return
      pen.fillStyle = colour
      pen.fillRect(row.step * wide, layer * tall, wide - gapX, tall - gapY)
    })
  }
}

/** What the colours mean, for those that are in the picture. */
function keyOf(map) {
  const cells = map.rows.filter((row) => !row.skipped).flatMap((row) => row.cells)
  const sparse = cells.filter((cell) => cell >= 0)
  const entries = []
  if (sparse.length) {
    const [low, high] = [sparse.reduce((a, b) => Math.min(a, b)), sparse.reduce((a, b) => Math.max(a, b))]
    entries.push([colourOf(Math.round((low + high) / 2)), low === high ? say("map_sparse_at", { density: low }) : say("map_sparse", { low, high })])
  }
  if (map.rows.some((row) => row.skipped)) entries.push([SKIPPED, say("map_skipped")])
  REASONS.forEach(([reason, colour], index) => {
    if (cells.includes(-2 - index)) entries.push([colour, say("map_dense", { reason: reasonWord(reason) })])
  })
  if (map.layers > MOST_LAYERS) entries.push(["", say("map_cut", { shown: MOST_LAYERS, layers: map.layers })])
  return entries
}

/** Elements that explain the colours. */
export function keyElements(map) {
  return keyOf(map).map(([colour, words]) => {
    const entry = document.createElement("span")
    const mark = document.createElement("i")
    mark.style.background = colour
    entry.append(mark, words)
    return entry
  })
}

/** Seconds in words: "2.5 s" as the user's language has it, "3:10". */
export const duration = (seconds) =>
  seconds < 60
    ? say("map_seconds", { seconds: seconds.toFixed(seconds < 10 ? 1 : 0) })
    : `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`
