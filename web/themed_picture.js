/**
 * The pictures of Report and Profile on the node, in the colours of the theme and with words in the user's language; a
 * click opens the picture with all its words, in English.
 */

import { addElement, fit, onOutput, onTheme } from "./host.js"
import { addressOf } from "./clip_sheet.js"
import { say, tell } from "./words.js"

const KEY = "draftattention_picture"
const MARGIN = 20
/** Which point of a label stands at its place: left, middle or right, and top or middle; see PIL's anchors. */
const ACROSS = { l: 0, m: -50, r: -100 }
const DOWN = { a: 0, m: -50 }
/** @type {WeakMap<object, ThemedPicture>} */
const shown = new WeakMap()
/** @type {Set<WeakRef<ThemedPicture>>} */
const all = new Set()

/** Whether an element's text is light, as on dark ground. It has to be in the page. */
function isDark(element) {
  const pen = document.createElement("canvas").getContext("2d")
  pen.fillStyle = getComputedStyle(element).color
  pen.fillRect(0, 0, 1, 1)
  const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128
}

class ThemedPicture {
  constructor(node) {
    this.node = node
    this.box = document.createElement("div")
    this.box.className = "draftattention draftattention-picture"
    this.link = document.createElement("a")
    this.link.target = "_blank"
    this.link.rel = "noopener"
    this.link.title = say("picture_open")
    this.image = document.createElement("img")
    this.image.alt = say("picture_label")
    this.image.draggable = false
    this.image.onerror = () => this.tellGone(true)
    this.image.onload = () => this.tellGone(false)
    this.gone = document.createElement("div")
    this.gone.className = "draftattention-caption"
    this.link.append(this.image)
    this.link.className = "draftattention-frame"
    this.box.append(this.link, this.gone)
    this.link.addEventListener("pointerdown", (event) => event.stopPropagation())
    addElement(node, "picture", this.box, () => this.height, true)
    // A node is wider or in the page later than its picture is known.
    new ResizeObserver(() => this.draw()).observe(this.box)
    all.add(new WeakRef(this))
  }

  /** What the picture takes in a node of this width, with the classic canvas's margin around elements. */
  get height() {
    const { width = 1, height = 0 } = this.told ?? {}
    return Math.ceil((Math.max(0, this.node.size[0] - MARGIN) * height) / width) + MARGIN
  }

  tellGone(gone) {
    this.link.hidden = gone
    this.gone.textContent = gone ? say("clip_gone") : ""
  }

  show(told) {
    this.told = told
    this.labels = (Array.isArray(told.labels) ? told.labels : []).map(label)
    this.link.replaceChildren(this.image, ...this.labels)
    this.draw()
    fit(this.node)
  }

  draw() {
    if (!this.told || !this.box.isConnected) return
    const theme = isDark(this.box) ? "dark" : "light"
    const address = addressOf(this.told[theme])
    this.labels.forEach((element, index) => (element.style.color = this.told.labels[index][theme]))
    if (this.image.getAttribute("src") === address) return
    this.image.src = address
    this.link.href = isFile(this.told.whole) ? addressOf(this.told.whole) : address
  }
}

/**
 * Words on the picture, in the user's language: the server's fonts lack most scripts.
 * @param {{words: import("./words.js").Told, x: number, y: number, size: number, anchor: string}} told places and size
 *   as shares of the picture
 */
function label(told) {
  const element = document.createElement("span")
  element.textContent = element.title = tell(told.words)
  const [across, down] = String(told.anchor)
  element.style.left = `${100 * told.x}%`
  element.style.top = `${100 * told.y}%`
  element.style.fontSize = `${100 * told.size}cqw`
  element.style.transform = `translate(${ACROSS[across] ?? 0}%, ${DOWN[down] ?? 0}%)`
  if (across === "l") element.style.maxWidth = `${100 * (1 - told.x)}%`
  return element
}

const isFile = (told) => typeof told?.filename === "string"

function show(node, output) {
  const [told] = output[KEY] ?? []
  if (!isFile(told?.light) || !isFile(told.dark) || !(told.width > 0 && told.height > 0)) return
  if (!shown.has(node)) shown.set(node, new ThemedPicture(node))
  shown.get(node).show(told)
}

onOutput("DraftAttention.Picture", show)
onTheme(() => {
  for (const one of all) {
    const picture = one.deref()
    if (picture) picture.draw()
    else all.delete(one)
  }
})
