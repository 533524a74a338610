/**
 * A density curve as its points, without a picture: progress 0 (noise) to 1 (video), density 0 to 1, straight lines
 * between points, two points at one progress for a step. The same rules as draftattn_core/run/schedule.py and
 * nodes/inputs/curves.py; a browser test compares them.
 */

/** @typedef {[number, number]} Point progress and density */

// A step of the sampler that is meant to fall on a point may land just before it.
const REACHED = 1e-4
const FEW_STEPS = 8
const RAMP = 0.1
const LEAST_GAP = 0.001

/**
 * Points from text such as "0:1, 0.15:1, 0.15:0.4"; null where the server would not read it either.
 * @returns {Point[]|null}
 */
export function parsePoints(text) {
  const points = []
  let last = 0
  for (const part of text.split(/[,;\n]/).map((one) => one.trim())) {
    if (!part) continue
    const pair = part.split(":").map((one) => (one.trim() ? Number(one) : NaN))
    const [progress, density] = pair
    if (pair.length !== 2 || !(progress >= last && progress <= 1) || !(density >= 0 && density <= 1)) return null
    points.push([progress, density])
    last = progress
  }
  return points.length ? points : null
}

/** @param {Point[]} points */
export const formatPoints = (points) => points.map((point) => point.map((one) => +one.toFixed(3)).join(":")).join(", ")

/** Density at a progress. @param {Point[]} points */
export function densityAt(points, progress) {
  let before = 0
  while (before < points.length && points[before][0] <= progress + REACHED) before++
  if (before === 0) return points[0][1]
  if (before === points.length) return points[before - 1][1]
  const [[x0, y0], [x1, y1]] = [points[before - 1], points[before]]
  return y0 + ((y1 - y0) * Math.max(0, progress - x0)) / (x1 - x0)
}

/**
 * The points of a preset for a run of `steps` steps.
 * @param {{density: number, dense_start: number}} preset
 * @param {number} density after the ramp; 0 for the preset's own
 * @returns {Point[]}
 */
export function presetPoints(preset, steps, density = 0) {
  const target = density || preset.density
  const first = Math.min(1, 2 * target)
  if (steps <= FEW_STEPS) return [[0, first], [1 / steps, first], [1 / steps, target]]
  const start = preset.dense_start
  return [[0, 1], [start, 1], [start, first], [Math.min(1, start + RAMP), target]]
}

/** The curve whose last share has at least a density. @param {Point[]} points @returns {Point[]} */
export function withEnd(points, share, density) {
  if (share <= 0) return points
  const begin = Math.max(0, 1 - share)
  const raised = (one) => Math.max(one, density)
  const at = densityAt(points, begin)
  const later = points.filter(([x]) => x > begin).map(([x, y]) => [x, raised(y)])
  const kept = points.filter(([x]) => x < begin)
  const end = [[begin, raised(at)], ...later]
  return kept.length ? [...kept, [begin, at], ...end] : end
}

/** Mean density over the steps of a sampler: the share of the block pairs that is computed exactly. */
export const meanDensity = (points, places) =>
  places.reduce((sum, place) => sum + Math.min(1, densityAt(points, place)), 0) / places.length

/** @returns {number[]} progress of each step, where a sampler's own are not known; `first` is behind when it starts */
export const evenSteps = (whole, first = 0) =>
  Array.from({ length: whole }, (_, step) => step / whole).filter((place) => place >= first - REACHED)

/**
 * Move a point; what stands at the same progress, the other end of a step, goes along sideways. It never reaches its
 * neighbours: points that fell together could not be told apart again.
 * @param {Point[]} points @returns {Point[]}
 */
export function movePoint(points, index, progress, density) {
  const x = points[index][0]
  const group = points.map((point, one) => (point[0] === x ? one : -1)).filter((one) => one >= 0)
  const low = group[0] > 0 ? points[group[0] - 1][0] + LEAST_GAP : 0
  const high = group.at(-1) < points.length - 1 ? points[group.at(-1) + 1][0] - LEAST_GAP : 1
  const place = low > high ? x : Math.min(high, Math.max(low, progress))
  return points.map(([px, py], one) => [
    px === x ? place : px,
    one === index ? Math.min(1, Math.max(0, density)) : py,
  ])
}

/** @param {Point[]} points @returns {[Point[], number]} the points with one more, and its index */
export function addPoint(points, progress, density) {
  const index = points.filter(([x]) => x <= progress).length
  return [[...points.slice(0, index), [progress, density], ...points.slice(index)], index]
}

/** @param {Point[]} points @returns {Point[]} without a point, unless it is the only one */
export const removePoint = (points, index) =>
  points.length > 1 ? points.filter((_, one) => one !== index) : points

/** The piece of the curve that leads on from a point: index of its first point; -1 if there is none. */
function pieceAfter(points, index) {
  for (let one = Math.min(index, points.length - 2); one >= 0; one--)
    if (points[one + 1][0] > points[one][0]) return one
  return -1
}

/** Whether the piece that leads on from a point is level up to a step. @param {Point[]} points */
export function isStep(points, index) {
  const piece = pieceAfter(points, index)
  if (piece < 0 || piece + 2 >= points.length) return false
  return points[piece][1] === points[piece + 1][1] && points[piece + 1][0] === points[piece + 2][0]
}

/** Turn that piece into a step, or a step into a straight line. @param {Point[]} points @returns {Point[]} */
export function toggleStep(points, index) {
  const piece = pieceAfter(points, index)
  if (piece < 0) return points
  if (isStep(points, index)) return points.filter((_, one) => one !== piece + 1)
  return [...points.slice(0, piece + 1), [points[piece + 1][0], points[piece][1]], ...points.slice(piece + 1)]
}
