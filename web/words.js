/**
 * What the scripts say to the user, by key. The texts stand in `locales/<language>/main.json`, for the server too; the
 * host hands out those of all packs. A language that lacks a key falls back to English.
 */

import { api, app } from "./host.js"

const SECTION = "draftattention"

/** @returns {Promise<Record<string, Record<string, string>>>} texts by language and key */
async function load() {
  const answer = await api.fetchApi("/i18n").catch(() => null)
  const all = answer?.ok ? await answer.json().catch(() => ({})) : {}
  return Object.fromEntries(Object.entries(all).map(([language, texts]) => [language, texts?.[SECTION] ?? {}]))
}

// The front end waits for all scripts before it makes a node.
const texts = await load()

/** The user's language, such as "zh" or "pt-BR". */
export const language = () => app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en"

/** A text of the user's language, or of English; undefined where neither has it. @param {string} key */
export const find = (key) => texts[language()]?.[key] ?? texts.en?.[key]

/** @param {string} key @param {Record<string, string|number>} [values] for the places in braces */
export function say(key, values = {}) {
  return (find(key) ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? `{${name}}`)
}

/**
 * A text that the server has sent: as it is, or by the keys and values that it was made from; see its `words.py`. The
 * English of what its core says comes along, since no file has it.
 * @typedef {string|number|{key: string, values?: Record<string, Told>, text?: string}|{parts: Told[], by: string}} Told
 * @param {Told} told
 * @returns {string}
 */
export function tell(told) {
  if (Array.isArray(told?.parts)) return told.parts.map(tell).join(say(told.by))
  if (typeof told?.key !== "string") return String(told ?? "")
  if (told.text !== undefined && find(told.key) === undefined) return told.text
  const values = Object.entries(told.values ?? {}).map(([name, value]) => [name, tell(value)])
  return say(told.key, Object.fromEntries(values))
}
