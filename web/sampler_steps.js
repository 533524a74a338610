/** The sampler that a schedule will steer, found by following the links from it. */

import { isLinked, sourceOf, widgetOf } from "./host.js"
import { say } from "./words.js"

const FOLLOWED = new Set(["SPARSITY_SCHEDULE", "MODEL", "GUIDER", "*"])
const MOST_NODES = 500

/**
 * @typedef {object} Sampler
 * @property {string} title of its node
 * @property {number} steps that it takes
 * @property {number} whole steps from pure noise to the finished video, of which it may take a part only
 * @property {number} first share of the denoising that is behind when it starts
 * @property {number} last share that is behind when it ends
 * @property {string} reason where this was found, for the user
 */

/** @returns {Sampler|null} the sampler with most steps that the schedule of a node reaches; null if none is known */
export const samplerOf = (scheduler) => samplersOf(scheduler)[0] ?? null

/** @returns {Sampler[]} the samplers that the schedule of a node reaches, the one with most steps first */
export function samplersOf(scheduler) {
  const seen = new Set([scheduler])
  const queue = [scheduler]
  const found = []
  for (const node of queue) {
    if (seen.size > MOST_NODES) break
    const sampler = node === scheduler ? null : read(node)
    if (sampler) found.push(sampler)
    node.outputs?.forEach((output, slot) => {
      if (!FOLLOWED.has(output.type)) return
      for (const next of node.getOutputNodes(slot) ?? []) {
        if (seen.has(next)) continue
        seen.add(next)
        queue.push(next)
      }
    })
  }
  return found.sort((a, b) => b.whole - a.whole)
}

/** Steps of a node that samples or makes sigmas; null for any other node. @returns {Sampler|null} */
function read(node) {
  const steps = number(node, "steps")
  const takesModel = node.inputs?.some((input) => input.name === "model" && input.type === "MODEL")
  if (!takesModel || !steps) return null
  const denoise = Math.min(1, number(node, "denoise") ?? 1)
  if (denoise <= 0) return null
  const whole = Math.floor(steps / denoise)
  const begin = Math.min(steps, number(node, "start_at_step") ?? 0)
  const end = Math.min(steps, number(node, "end_at_step") ?? steps)
  const title = node.title ?? node.type
  const reason = say(denoise < 1 ? "by_sampler_share" : "by_sampler", { title, steps, denoise, whole })
  const first = (whole - steps + begin) / whole
  return { title, steps: end - begin, whole, first, last: (whole - steps + end) / whole, reason }
}

/** A number on a widget, or on the node that is linked to it. */
function number(node, name) {
  const widget = widgetOf(node, name)
  if (!widget) return null
  const value = isLinked(node, name) ? sourceOf(node, name)?.node.widgets?.[0]?.value : widget.value
  return typeof value === "number" ? value : null
}
