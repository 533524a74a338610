/** The picture of a density curve. */

import { densityAt } from "./curve_points.js"
import { say } from "./words.js"

const MARGIN = { left: 34, right: 12, top: 10, bottom: 30 }
const HANDLE = 4.5

/**
 * @typedef {object} Picture what is drawn
 * @property {import("./curve_points.js").Point[]} points that users edit
 * @property {import("./curve_points.js").Point[]} curve that counts, with its end
 * @property {number[]} places progress of the sampler's steps
 * @property {{from: number, to: number, title: string}[]} parts of the denoising, one for each sampler
 * @property {boolean} own whether the points are the user's own and not a preset's
 * @property {number} selected index of a point, -1 for none
 * @property {number|null} pointer progress under the mouse
 */

/** Between progress and density, and pixels of an element of that size. */
export function frame(width, height) {
  const plot = { left: MARGIN.left, top: MARGIN.top, right: width - MARGIN.right, bottom: height - MARGIN.bottom }
  const [wide, high] = [plot.right - plot.left, plot.bottom - plot.top]
  return {
    ...plot,
    x: (progress) => plot.left + progress * wide,
    y: (density) => plot.bottom - density * high,
    progress: (x) => Math.min(1, Math.max(0, (x - plot.left) / wide)),
    density: (y) => Math.min(1, Math.max(0, (plot.bottom - y) / high)),
  }
}

/**
 * Draw on a canvas as large as its element; sharp at any zoom.
 * @param {HTMLCanvasElement} canvas
 * @param {Picture} picture
 */
export function drawCurve(canvas, picture) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight]
  if (!width || !height) return
  const shown = canvas.getBoundingClientRect()
  const scale = Math.min(4, Math.max(1, (shown.width / width) * devicePixelRatio))
  canvas.width = Math.round(width * scale)
  canvas.height = Math.round(height * scale)
  const pen = canvas.getContext("2d")
  pen.scale(scale, scale)
  const style = getComputedStyle(canvas)
  const colour = (name) => style.getPropertyValue(`--da-${name}`).trim() || style.color
  const at = frame(width, height)

  drawParts(pen, at, picture.parts, colour)
  drawDense(pen, at, picture.curve, colour)
  drawGrid(pen, at, colour)
  fillBelow(pen, at, picture.curve, colour)
  if (picture.curve !== picture.points) stroke(pen, at, picture.points, colour("faint"), [4, 4])
  stroke(pen, at, picture.curve, colour("curve"))
  drawSteps(pen, at, picture, colour)
  if (picture.pointer !== null && picture.selected < 0) drawPointer(pen, at, picture, colour)
  drawHandles(pen, at, picture, colour)
  if (picture.points[picture.selected]) drawChosen(pen, at, picture.points[picture.selected], colour)
}

/** From edge to edge: level before the first point and after the last. */
const spread = (points) => [[0, points[0][1]], ...points, [1, points.at(-1)[1]]]

function trace(pen, at, points) {
  spread(points).forEach(([x, y], index) => pen[index ? "lineTo" : "moveTo"](at.x(x), at.y(y)))
}

function stroke(pen, at, points, colour, dashes = []) {
  pen.beginPath()
  trace(pen, at, points)
  pen.strokeStyle = colour
  pen.lineWidth = dashes.length ? 1 : 2
  pen.lineJoin = "round"
  pen.setLineDash(dashes)
  pen.stroke()
  pen.setLineDash([])
}

function fillBelow(pen, at, points, colour) {
  pen.beginPath()
  trace(pen, at, points)
  pen.lineTo(at.right, at.bottom)
  pen.lineTo(at.left, at.bottom)
  pen.globalAlpha = 0.16
  pen.fillStyle = colour("curve")
  pen.fill()
  pen.globalAlpha = 1
}

/** Stretches where everything is computed, with the word in the wide ones. */
function drawDense(pen, at, points, colour) {
  const all = spread(points)
  all.slice(1).forEach(([x1, y1], index) => {
    const [x0, y0] = all[index]
    if (y0 < 1 || y1 < 1 || x1 <= x0) return
    pen.globalAlpha = 0.14
    pen.fillStyle = colour("ink")
    pen.fillRect(at.x(x0), at.top, at.x(x1) - at.x(x0), at.bottom - at.top)
    pen.globalAlpha = 1
    const word = say("dense")
    write(pen, colour("faint"), "center")
    if (pen.measureText(word).width + 6 < at.x(x1) - at.x(x0))
      pen.fillText(word, (at.x(x0) + at.x(x1)) / 2, (at.top + at.bottom) / 2)
  })
}

function drawParts(pen, at, parts, colour) {
  if (parts.length < 2) return
  parts.forEach(({ from, to, title }, index) => {
    const [left, right] = [at.x(from), at.x(to)]
    pen.globalAlpha = index % 2 ? 0.1 : 0.04
    pen.fillStyle = colour("part")
    pen.fillRect(left, at.top, right - left, at.bottom - at.top)
    pen.globalAlpha = 1
    write(pen, colour("faint"), "right", 10)
    pen.fillText(title, right - 4, at.top + 8, Math.max(0, right - left - 8))
    if (from > 0) line(pen, colour("faint"), [[left, at.top], [left, at.bottom]], [2, 3])
  })
}

function drawGrid(pen, at, colour) {
  for (let part = 0; part <= 4; part++) {
    const [x, y] = [at.x(part / 4), at.y(part / 4)]
    pen.globalAlpha = 0.45
    line(pen, colour("line"), [[at.left, y], [at.right, y]])
    pen.globalAlpha = 1
    write(pen, colour("faint"), "right", 10)
    pen.fillText(`${part * 25}%`, at.left - 5, y)
    line(pen, colour("line"), [[x, at.bottom], [x, at.bottom + 4]])
    if (part % 4) {
      write(pen, colour("faint"), "center", 10)
      pen.fillText(`${part * 25}%`, x, at.bottom + 11)
    }
  }
  write(pen, colour("faint"), "left", 10)
  pen.fillText(say("noise"), at.left, at.bottom + 11)
  write(pen, colour("faint"), "right", 10)
  pen.fillText(say("video"), at.right, at.bottom + 11)
}

function drawSteps(pen, at, { curve, places }, colour) {
  const radius = places.length > 60 ? 1.4 : places.length > 30 ? 2 : 2.8
  for (const place of places) {
    const [x, y] = [at.x(place), at.y(Math.min(1, densityAt(curve, place)))]
    line(pen, colour("step"), [[x, at.bottom], [x, at.bottom - 4]])
    pen.beginPath()
    pen.arc(x, y, radius, 0, 2 * Math.PI)
    pen.fillStyle = colour("step")
    pen.fill()
  }
}

function drawPointer(pen, at, { curve, pointer }, colour) {
  const [x, density] = [at.x(pointer), densityAt(curve, pointer)]
  line(pen, colour("faint"), [[x, at.top], [x, at.bottom]], [2, 3])
  write(pen, colour("ink"), x > (at.left + at.right) / 2 ? "right" : "left", 11)
  const away = x > (at.left + at.right) / 2 ? -6 : 6
  pen.fillText(place(pointer, density), x + away, density > 0.5 ? at.bottom - 12 : at.top + 22)
}

const place = (progress, density) =>
  say("place", { progress: (100 * progress).toFixed(0), density: (100 * density).toFixed(0) })

/** Where the chosen point stands, beside it. */
function drawChosen(pen, at, [progress, density], colour) {
  const right = progress > 0.6
  const text = place(progress, density)
  const [x, y] = [at.x(progress) + (right ? -12 : 12), at.y(density) + (density > 0.85 ? 18 : -18)]
  write(pen, colour("back"), right ? "right" : "left", 11)
  const wide = pen.measureText(text).width
  pen.fillRect(right ? x - wide - 3 : x - 3, y - 8, wide + 6, 16)
  pen.fillStyle = colour("ink")
  pen.fillText(text, x, y)
}

function drawHandles(pen, at, { points, own, selected }, colour) {
  points.forEach(([x, y], index) => {
    pen.beginPath()
    pen.arc(at.x(x), at.y(y), index === selected ? HANDLE + 1.5 : HANDLE, 0, 2 * Math.PI)
    pen.fillStyle = index === selected ? colour("curve") : colour("back")
    pen.globalAlpha = own ? 1 : 0.75
    pen.fill()
    pen.lineWidth = 2
    pen.strokeStyle = colour("curve")
    pen.stroke()
    pen.globalAlpha = 1
  })
}

function line(pen, colour, points, dashes = []) {
  pen.beginPath()
  points.forEach(([x, y], index) => pen[index ? "lineTo" : "moveTo"](x, y))
  pen.strokeStyle = colour
  pen.lineWidth = 1
  pen.setLineDash(dashes)
  pen.stroke()
  pen.setLineDash([])
}

function write(pen, colour, align, size = 11) {
  pen.fillStyle = colour
  pen.textAlign = align
  pen.textBaseline = "middle"
  pen.font = `${size}px Inter, Arial, sans-serif`
}
