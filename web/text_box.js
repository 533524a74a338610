/** A read-only text on a node, which scrolls, can be selected and copied. */

import { addElement, fit } from "./host.js"
// Registered first, so that its button stands above the box.
import "./folded_inputs.js"
import { showLines, widthOf } from "./text_lines.js"
import { say } from "./words.js"

const LEAST = 56
const MOST = 300

/**
 * Add the box to a node.
 * @param {string} name of the widget
 * @param {string} hint shown while there is no text
 * @returns {(text: string, wrong?: string) => void} shows a text, below what is wrong with the inputs if anything is;
 *   an empty text brings back the hint
 */
export function addTextBox(node, name, hint) {
  const box = document.createElement("div")
  box.className = "draftattention draftattention-text empty"
  const shown = document.createElement("pre")
  shown.tabIndex = 0
  shown.textContent = hint
  // The front end zooms the canvas on the wheel, unless it turns over a focused element that says so.
  shown.dataset.captureWheel = "true"
  shown.addEventListener("wheel", (event) => document.activeElement === shown && event.stopPropagation())
  shown.addEventListener("keydown", (event) => (event.ctrlKey || event.metaKey) && event.stopPropagation())
  const copy = document.createElement("button")
  copy.type = "button"
  copy.textContent = say("copy")
  copy.addEventListener("click", async () => {
    if (!(await toClipboard(shown))) return
    copy.textContent = say("copied")
    setTimeout(() => (copy.textContent = say("copy")), 1500)
  })
  const alert = document.createElement("div")
  alert.className = "draftattention-wrong"
  alert.setAttribute("role", "alert")
  // The text stands in a frame that it does not push open, so that Nodes 2.0 too keeps to the height asked for.
  const view = document.createElement("div")
  view.className = "draftattention-view"
  view.append(shown)
  box.append(alert, view, copy)

  let height = LEAST
  addElement(node, name, box, () => height)
  fit(node)
  return (text, wrong = "") => {
    showLines(shown, text || hint)
    alert.textContent = wrong
    box.classList.toggle("empty", !text)
    const count = lines(text, node.size[0]) + (wrong ? lines(wrong, node.size[0]) + 1 : 0)
    height = Math.max(LEAST, Math.min(MOST, 34 + 18 * count))
    box.style.minHeight = `${height - 20}px`
    fit(node)
  }
}

/** Copy an element's text; whether that worked. Pages that come without TLS have no clipboard to write to. */
async function toClipboard(element) {
  const written = navigator.clipboard?.writeText(element.textContent)
  if (written) return written.then(() => true, () => false)
  getSelection().selectAllChildren(element)
  return document.execCommand("copy")
}

/** About how many lines a text takes in a node of a width. */
function lines(text, width) {
  const letters = Math.max(20, (width - 40) / 6.2)
  return text.split("\n").reduce((sum, line) => sum + Math.max(1, Math.ceil(widthOf(line) / letters)), 0)
}
