/** A clip that the server sends as one picture with all of its frames, and a player for clips of one length. */

import { api } from "./host.js"
import { CLIP_RATE, setting } from "./settings.js"
import { say } from "./words.js"

const MOST_FRAMES = 1000
/** How often a player that is out of sight looks whether it is in sight again, in milliseconds. */
const PATIENCE = 500

/**
 * @typedef {object} Told what the server says of a sheet
 * @property {string} filename
 * @property {string} subfolder
 * @property {string} type
 * @property {number} frames how many
 * @property {number} columns how many side by side
 * @property {number} width of a frame in pixels
 * @property {number} height
 * @property {number} every 1, or n where only each n-th frame of the clip is in it
 * @property {boolean} shrunk
 * @property {string} [label]
 */

/** The address under which the host serves a file of its own. @param {{filename: string}} file */
export function addressOf({ filename, subfolder = "", type = "temp" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`)
}

/** Whether what came from the server is a sheet. */
export const isSheet = (told) =>
  typeof told?.filename === "string" &&
  ["frames", "columns", "width", "height"].every((name) => Number.isInteger(told[name]) && told[name] > 0) &&
  told.frames <= MOST_FRAMES

export class ClipSheet {
  /** @param {Told} told @param {() => void} loaded called when there is something to draw, or nothing will come */
  constructor(told, loaded) {
    this.told = told
    this.image = new Image()
    this.failed = false
    this.image.onload = loaded
    this.image.onerror = () => {
      this.failed = true
      loaded()
    }
    this.image.src = addressOf(told)
  }

  get ready() {
    return this.image.complete && this.image.naturalWidth > 0
  }

  /** Draw a frame into a box of the canvas. @param {CanvasRenderingContext2D} pen */
  draw(pen, frame, [x, y, wide, high]) {
    if (!this.ready) return
    const { columns, width, height } = this.told
    const [left, top] = [(frame % columns) * width, Math.floor(frame / columns) * height]
    // A latent's few pixels stay squares.
    pen.imageSmoothingEnabled = width > 200 || wide < width
    pen.drawImage(this.image, left, top, width, height, x, y, wide, high)
  }
}

/** The largest box of a frame's shape in the middle of a canvas. */
export function boxOf(canvas, { width, height }) {
  const scale = Math.min(canvas.width / width, canvas.height / height)
  const [wide, high] = [width * scale, height * scale]
  return [(canvas.width - wide) / 2, (canvas.height - high) / 2, wide, high]
}

/** Give a canvas as many pixels as it is shown with, at the zoom of now. Whether there is anything to draw on. */
export function sharpen(canvas) {
  if (!canvas.clientWidth || !canvas.clientHeight) return false
  const scale = Math.min(4, Math.max(1, (canvas.getBoundingClientRect().width / canvas.clientWidth) * devicePixelRatio))
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(side * scale))
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height })
  else canvas.getContext("2d").clearRect(0, 0, width, height)
  return true
}

/** A bar with a button to play, a frame slider, and the frame's number. */
export class Player {
  frame = 0
  playing = false

  /** @param {() => void} draw called when another frame is to be shown */
  constructor(draw) {
    this.draw = draw
    this.button = document.createElement("button")
    this.button.type = "button"
    this.button.addEventListener("click", (event) => {
      event.stopPropagation()
      this.play(!this.playing)
    })
    this.slider = slider(say("clip_frame"), (value) => this.show(value))
    this.count = document.createElement("span")
    this.count.className = "draftattention-faint"
    this.elements = [this.button, this.slider, this.count]
    this.start({ frames: 1, every: 1 })
  }

  /** Begin with a clip, in its middle. @param {{frames: number, every: number}} told */
  start({ frames, every }) {
    Object.assign(this, { frames, every })
    this.slider.max = String(frames - 1)
    this.button.disabled = this.slider.disabled = frames < 2
    this.play(false)
    this.show(Math.floor(frames / 2))
  }

  show(frame) {
    this.frame = Math.min(this.frames - 1, Math.max(0, frame))
    this.slider.value = String(this.frame)
    const values = { frame: this.frame * this.every + 1, frames: (this.frames - 1) * this.every + 1 }
    this.count.textContent = say("clip_of", values)
    this.draw()
  }

  play(playing) {
    this.playing = playing && this.frames > 1
    this.button.textContent = this.playing ? "❚❚" : "▶"
    this.button.setAttribute("aria-label", say(this.playing ? "clip_pause" : "clip_play"))
    this.button.title = this.button.getAttribute("aria-label")
    if (this.playing) this.run(performance.now(), this.frame)
  }

  /** Show the frames as time goes by. Nothing goes on once it is paused, or its element is gone. */
  run(began, first) {
    const turn = {}
    this.turn = turn
    const next = () => {
      if (this.turn !== turn || !this.playing) return
      if (!this.button.isConnected) return this.play(false)
      if (!this.button.getClientRects().length) return setTimeout(next, PATIENCE)
      const passed = Math.floor(((performance.now() - began) / 1000) * (setting(CLIP_RATE) / this.every))
      const frame = (first + passed) % this.frames
      if (frame !== this.frame) this.show(frame)
      requestAnimationFrame(next)
    }
    requestAnimationFrame(next)
  }
}

/** A slider in a node, which the canvas below does not take for a drag. */
export function slider(label, change) {
  const made = document.createElement("input")
  made.type = "range"
  made.min = "0"
  made.setAttribute("aria-label", label)
  made.title = label
  for (const kind of ["pointerdown", "pointermove", "dblclick"])
    made.addEventListener(kind, (event) => event.stopPropagation())
  made.addEventListener("keydown", (event) => event.stopPropagation())
  made.addEventListener("input", () => change(Number(made.value)))
  return made
}
