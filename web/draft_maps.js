/** Draft maps that the server has written for the browser: fetched when they are looked at, a few kept. */

import { addressOf } from "./clip_sheet.js"

const MOST_KEPT = 6
/** The server's scale of levels, see `coarse_maps.py`. */
const [TOP, LOWEST] = [255, 1e-4]
const MOST_TOKENS = 4_000_000

/**
 * @typedef {object} ToldMap
 * @property {number} step
 * @property {number} layer
 * @property {number} heads
 * @property {number[]} rows the query blocks that are in it
 * @property {number} columns
 * @property {number} merged key blocks that are one column
 * @property {{filename: string}} file
 */

/**
 * @typedef {object} Row what one query block of a head attends to
 * @property {number} block the query block
 * @property {Float64Array} share of its attention by column, in all 1
 * @property {Uint8Array} kept by column, 255 where all of it is computed exactly
 * @property {number} merged see `ToldMap`
 */

/** Whether what came from the server can be shown. */
export function areMaps(told) {
  const [t, h, w] = told?.grid ?? []
  return (
    [t, h, w].every((size) => Number.isInteger(size) && size > 0) &&
    t * h * w <= MOST_TOKENS &&
    Array.isArray(told.maps) &&
    told.maps.length > 0 &&
    told.maps.every((map) => Array.isArray(map?.rows) && map.rows.length && map.columns > 0 && map.heads > 0)
  )
}

/** Bytes of a file in zlib's form. */
async function unpack(file) {
  const answer = await fetch(addressOf(file))
  if (!answer.ok) throw new Error(`${answer.status}`)
  const bytes = answer.body.pipeThrough(new DecompressionStream("deflate"))
  return new Response(bytes).arrayBuffer()
}

export class DraftMaps {
  /** @type {Map<ToldMap, Promise<{draft: Uint8Array, kept: Uint8Array}>>} the one last asked for at the end */
  fetched = new Map()

  /** @param {{grid: number[], maps: ToldMap[], blocks: {filename: string}}} told */
  constructor(told) {
    this.told = told
    this.blocks = null
  }

  get tokens() {
    return this.told.grid.reduce((product, size) => product * size, 1)
  }

  get steps() {
    return [...new Set(this.told.maps.map((map) => map.step))].sort((a, b) => a - b)
  }

  get layers() {
    return [...new Set(this.told.maps.map((map) => map.layer))].sort((a, b) => a - b)
  }

  /** The map of a step and layer; undefined where that was not sparse. */
  find(step, layer) {
    return this.told.maps.find((map) => map.step === step && map.layer === layer)
  }

  /** What did not come is asked for again the next time. */
  begin(forget, loading) {
    loading.catch(forget)
    return loading
  }

  /** Query and key block of every token; see the server's `send_maps`. */
  async loadBlocks() {
    this.blocks ??= this.begin(() => (this.blocks = null), unpack(this.told.blocks).then((buffer) => {
      const view = new DataView(buffer)
      const both = Uint16Array.from({ length: 2 * this.tokens }, (_, index) => view.getUint16(2 * index, true))
      return { query: both.subarray(0, this.tokens), key: both.subarray(this.tokens) }
    }))
    return this.blocks
  }

  /** @param {ToldMap} map */
  async load(map) {
    const known = this.fetched.get(map)
    this.fetched.delete(map)
    const loading =
      known ??
      this.begin(() => this.fetched.delete(map), unpack(map.file).then((buffer) => {
        const cells = map.heads * map.rows.length * map.columns
        return { draft: new Uint8Array(buffer, 0, cells), kept: new Uint8Array(buffer, cells, cells) }
      }))
    this.fetched.set(map, loading)
    if (this.fetched.size > MOST_KEPT) this.fetched.delete(this.fetched.keys().next().value)
    return loading
  }

  /**
   * What a head's query block nearest to a block of the video attends to.
   * @param {ToldMap} map
   * @param {{draft: Uint8Array, kept: Uint8Array}} data of it
   * @returns {Row}
   */
  row(map, data, head, block) {
    const { rows, columns, merged } = map
    let nearest = 0
    rows.forEach((one, index) => {
      if (Math.abs(one - block) < Math.abs(rows[nearest] - block)) nearest = index
    })
    const from = (Math.min(head, map.heads - 1) * rows.length + nearest) * columns
    const share = Float64Array.from(data.draft.subarray(from, from + columns), (level) =>
      level ? LOWEST ** ((TOP - level) / (TOP - 1)) : 0,
    )
    const sum = share.reduce((total, one) => total + one, 0)
    return { block: rows[nearest], share: share.map((one) => one / sum), kept: data.kept.subarray(from, from + columns), merged }
  }
}
