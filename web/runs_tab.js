/** A tab in the sidebar: the runs since the server started, and the doctor. */

import { api, app, elementLanguage, nameOfKind, nodeOfRun, workflowId } from "./host.js"
import { drawMap, duration, keyElements, reasonWord } from "./map_drawing.js"
import { showLines } from "./text_lines.js"
import { labelOf, language, say, tell, wordOf } from "./words.js"

const ROUTE = "/draftattention/runs"
const EVENT = "draftattention.run"
const APPLY = "ApplyDraftAttention"

/**
 * @typedef {object} Run what the server says of one, see its `LoggedRun`
 * @property {number} number
 * @property {string} node
 * @property {string} workflow
 * @property {string} title what the user called the node when it ran; empty where it is not known
 * @property {number} at
 * @property {number} seconds
 * @property {number|null} steps
 * @property {string|null} cancelled
 * @property {string} text
 * @property {import("./words.js").Told|null} words the same for the user's language
 * @property {import("./words.js").Told|null} cancelled_words
 * @property {Record<string, import("./words.js").Told>} settings
 * @property {number|null} density
 * @property {number|null} work
 * @property {number|null} speed_up
 * @property {number|null} error
 * @property {number|null} skip_error
 * @property {string} dense
 */

/** The tab's element while it is open. */
let open = null

function element(kind, className, text = "") {
  const made = document.createElement(kind)
  made.className = className
  made.textContent = text
  return made
}

/** Figures of a run in one line, those that are known. @param {Run} run */
function figures(run) {
  const percent = (share) => (100 * share).toFixed(share < 0.1 ? 1 : 0)
  return [
    duration(run.seconds),
    run.steps && say("runs_steps", { steps: run.steps }),
    run.speed_up && say("badge_faster", { factor: run.speed_up.toFixed(1) }),
    run.density !== null && say("runs_density", { density: percent(run.density) }),
    run.work !== null && say("runs_work", { work: percent(run.work) }),
    run.error !== null && say("runs_error", { error: percent(run.error) }),
    run.skip_error !== null && say("runs_skip_error", { error: percent(run.skip_error) }),
  ]
    .filter(Boolean)
    .join(" · ")
}

/** What a run is called: as its node is called now, where that is open, else as it was called then. @param {Run} run */
function nameOf(run) {
  const node = run.workflow === workflowId() ? nodeOfRun(run.node) : null
  return node?.title ?? (run.title || say("runs_node", { name: nameOfKind(APPLY), node: run.node }))
}

/** A run: its title and figures, and below them, once it is opened, its picture, settings and words. @param {Run} run */
function card(run) {
  const box = element("details", "draftattention-run")
  const head = document.createElement("summary")
  head.setAttribute("aria-expanded", "false")
  const when = new Date(1000 * run.at).toLocaleTimeString(language(), { timeStyle: "medium" })
  const settings = Object.entries(run.settings).map(([name, value]) => `${labelOf(APPLY, name)} ${wordOf(name, tell(value))}`)
  head.append(element("b", "", `${when}  ${nameOf(run)}`))
  head.append(element("span", "", figures(run)), element("span", "draftattention-faint", settings.join(say("join_list"))))
  if (run.cancelled) head.append(element("span", "draftattention-faint", tell(run.cancelled_words ?? run.cancelled)))
  if (run.dense) head.append(element("span", "draftattention-wrong", say("map_dense", { reason: reasonWord(run.dense) })))
  box.append(head)
  box.addEventListener("toggle", () => {
    head.setAttribute("aria-expanded", String(box.open))
    if (box.open && box.children.length === 1) void unfold(box, run)
  })
  return box
}

async function unfold(box, run) {
  const map = element("div", "draftattention-map")
  const canvas = document.createElement("canvas")
  canvas.setAttribute("role", "img")
  canvas.setAttribute("aria-label", say("map_label"))
  canvas.title = say("map_label")
  const key = element("div", "draftattention-map-key")
  map.append(canvas, key)
  box.append(map, element("pre", "", tell(run.words ?? run.text)))
  const answer = await api.fetchApi(`${ROUTE}/${run.number}`).catch(() => null)
  const rows = answer?.ok ? await answer.json() : []
  if (!rows.length) return map.remove()
  const kept = { steps: run.steps, layers: 0, rows }
  key.replaceChildren(...keyElements(kept))
  drawMap(canvas, kept)
  globalThis.ResizeObserver && new ResizeObserver(() => drawMap(canvas, kept)).observe(canvas)
}

/** Show the server's list again; runs that are unfolded stay so. */
async function refresh() {
  const list = open?.querySelector(".draftattention-runs-list")
  if (!list) return
  const answer = await api.fetchApi(ROUTE).catch(() => null)
  const runs = answer?.ok ? await answer.json() : []
  const known = new Map([...list.querySelectorAll("details")].map((one) => [Number(one.dataset.number), one]))
  const cards = runs.map((run) => {
    const made = known.get(run.number) ?? card(run)
    made.dataset.number = String(run.number)
    return made
  })
  list.replaceChildren(...(cards.length ? cards : [element("p", "draftattention-faint", say("runs_none"))]))
}

async function examine(button, shown) {
  button.disabled = true
  shown.textContent = say("doctor_busy")
  const answer = await api.fetchApi("/draftattention/doctor", { method: "POST" }).catch(() => null)
  showLines(shown, answer?.ok ? tell((await answer.json()).words) : say("doctor_failed"))
  button.disabled = false
}

function render(place) {
  const box = element("div", "draftattention draftattention-runs")
  box.lang = elementLanguage()
  const doctor = element("button", "", say("doctor_check"))
  doctor.type = "button"
  const found = element("pre", "draftattention-doctor")
  doctor.addEventListener("click", () => void examine(doctor, found))
  const list = element("div", "draftattention-runs-list")
  box.append(element("h3", "", say("runs_title")), list, element("h3", "", say("doctor_title")), doctor, found)
  place.replaceChildren(box)
  open = box
  void refresh()
}

app.registerExtension({
  name: "DraftAttention.RunsTab",
  setup() {
    app.extensionManager?.registerSidebarTab?.({
      id: "draftattention",
      icon: "pi pi-bolt",
      title: "DraftAttention",
      tooltip: say("runs_tooltip"),
      type: "custom",
      render,
      destroy: () => (open = null),
    })
    api.addEventListener(EVENT, () => void refresh())
  },
})
