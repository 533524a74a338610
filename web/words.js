/**
 * What the scripts say to the user, by key. The texts stand in `locales/<language>/main.json`, for the server too; the
 * host hands out those of all packs. A language that lacks a key falls back to English.
 */

import { api, app, inLanguage } from "./host.js"
import { withParticles } from "./korean.js"

const SECTION = "draftattention"

// The front end waits for all scripts before it makes a node.
const answer = await api.fetchApi("/i18n").catch(() => null)
/** @type {Record<string, object>} what the host hands out, by language */
const all = answer?.ok ? await answer.json().catch(() => ({})) : {}
/** @type {Record<string, Record<string, string>>} our texts by language and key */
const texts = Object.fromEntries(Object.entries(all).map(([language, said]) => [language, said?.[SECTION] ?? {}]))

/** The user's language, such as "zh" or "pt-BR". */
export const language = () => app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en"

/** A text of the user's language, or of English; undefined where neither has it. @param {string} key */
export const find = (key) => texts[language()]?.[key] ?? texts.en?.[key]

/** @param {string} key @param {Record<string, string|number>} [values] for the places in braces */
export function say(key, values = {}) {
  const said = (find(key) ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? `{${name}}`)
  return language() === "ko" ? withParticles(said) : said
}

/** What an input of a class of nodes is called on its widget. */
export const labelOf = (kind, input) => all[language()]?.nodeDefs?.[kind]?.inputs?.[input]?.name ?? input

/** What a choice of an input means in the user's language; the value itself where no text says it. */
export const wordOf = (input, value) => find(`option_${input}_${value}`) ?? value

// Elements say which language they are in: the host's page calls itself English, and a browser chooses the shapes of
// Chinese characters and the places where lines may break by the language.
inLanguage(() => (texts[language()] ? language() : "en"))

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
