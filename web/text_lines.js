/** Lines of a text as elements: what is indented stays so where it wraps, and columns stand in line in any font. */

/** A name, at least two spaces, what it is. */
const FACT = /^(\S.*? {2,})(?=\S)/
const ITEM = /^ +(?:- )?/
/** Letters that are as wide as two others: Chinese, Japanese, Korean. */
const WIDE = /[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\uff00-\uff60]/g

/** How many letters of Latin text a text is as wide as. */
export const widthOf = (text) => text.length + (text.match(WIDE)?.length ?? 0)

/**
 * Show a text in an element, whose `textContent` is the text again.
 * @param {Element} element
 * @param {string} text
 */
export function showLines(element, text) {
  const lines = text.split("\n")
  const names = lines.map((line) => FACT.exec(line)?.[0])
  const widest = Math.max(0, ...names.map((name) => widthOf(name?.trimEnd() ?? "")))
  const made = lines.map((line, index) => {
    const [start] = names[index] ? [names[index]] : (ITEM.exec(line) ?? [""])
    const shown = document.createElement("span")
    shown.className = "draftattention-line"
    if (start) {
      const mark = document.createElement("span")
      mark.textContent = start
      shown.append(mark)
      shown.classList.add(names[index] ? "draftattention-fact" : "draftattention-indented")
      if (names[index]) shown.style.setProperty("--hang", `${widest + 1}ch`)
      else mark.hidden = !start.trim()
    }
    shown.append(line.slice(start.length), index < lines.length - 1 ? "\n" : "")
    return shown
  })
  element.replaceChildren(...made)
}
