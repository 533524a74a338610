/** The sampler that a schedule will steer, found by following the links from it. */

import { isLinked, sourceOf, widgetOf } from "./host.js"
import { say } from "./words.js"

const FOLLOWED = new Set(["SPARSITY_SCHEDULE", "MODEL", "GUIDER", "*"])
const MOST_NODES = 500

/**
 * @typedef {object} Sampler
 * @property {number} steps steps that it takes
 * @property {number} whole steps from pure noise to the finished video, of which it may take the last ones only
 * @property {number} first share of the denoising that is behind when it starts
 * @property {string} reason where this was found, for the user
 */

/** @returns {Sampler|null} the sampler with most steps that the schedule of a node reaches; null if none is known */
export function samplerOf(scheduler) {
  const seen = new Set([scheduler])
  const queue = [scheduler]
  let found = null
  for (const node of queue) {
    if (seen.size > MOST_NODES) break
    const sampler = node === scheduler ? null : read(node)
    if (sampler && sampler.whole > (found?.whole ?? 0)) found = sampler
    node.outputs?.forEach((output, slot) => {
      if (!FOLLOWED.has(output.type)) return
      for (const next of node.getOutputNodes(slot) ?? []) {
        if (seen.has(next)) continue
        seen.add(next)
        queue.push(next)
      }
    })
  }
  return found
}

/** Steps of a node that samples or makes sigmas; null for any other node. */
function read(node) {
  const steps = number(node, "steps")
  const takesModel = node.inputs?.some((input) => input.name === "model" && input.type === "MODEL")
  if (!takesModel || !steps) return null
  const denoise = Math.min(1, number(node, "denoise") ?? 1)
  if (denoise <= 0) return null
  const whole = Math.floor(steps / denoise)
  const values = { title: node.title ?? node.type, steps, denoise, whole }
  const reason = say(denoise < 1 ? "by_sampler_share" : "by_sampler", values)
  return { steps, whole, first: 1 - steps / whole, reason }
}

/** A number on a widget, or on the node that is linked to it. */
function number(node, name) {
  const widget = widgetOf(node, name)
  if (!widget) return null
  const value = isLinked(node, name) ? sourceOf(node, name)?.node.widgets?.[0]?.value : widget.value
  return typeof value === "number" ? value : null
}
