/** What the scripts say to the user, by key. A language that lacks a key falls back to English. */

import { app } from "./host.js"

const WORDS = {
  en: {
    show_advanced: "Show advanced inputs",
    hide_advanced: "Hide advanced inputs",
    copy: "Copy",
    copied: "Copied",
    doctor_empty: "Run the workflow to see what this machine can do.",
    report_empty: "The report appears here after the run.",
    profile_empty: "Run the workflow to see what the profile holds.",
    compare_empty: "The figures appear here after the run.",
    no_run: "Last run: none yet.",
    by_preset: "Not used: the preset {preset} sets this. Choose custom to set it yourself.",
    by_paper: "Not used: the preset {preset} is a published method, which fixes this.",
    by_schedule: "Not used: the connected schedule sets the curve.",
    by_max_error: "Not used: max_error sets the densities, by what is measured on the model.",
    by_speed: "Not used: the speed {speed} spends its densities by measured error.",
    speed_replaces:
      "Not used: the speed {speed} sets densities and skipped steps. Choose custom to set the densities yourself.",
    by_method: "Not used: the method {method} brings its own.",
    schedule_layers: "Not used: the connected Sparsity Scheduler lists dense layers of its own.",
    preset_curve: "{name} (schedule's curve)",
    preset_curve_tip:
      "The connected schedule replaces this preset's curve. Only published methods still change more than the curve.",
    by_curve: "Not used: the curve {curve} has a density of its own. Set density, or choose custom points.",
    by_points: "Not used: custom points give the density themselves.",
    by_drawn: "Not used: the connected curve sets the points.",
    drawn: "Drawn by the connected curve.",
    drawn_unseen: "The connected curve sets the points. They are shown here after a run.",
    no_end: "Not used: end_share is 0, so there is no such end.",
    curve_label:
      "Density over the denoising. Arrow keys move the chosen point, Page Up and Page Down choose one, Insert adds, " +
      "Delete removes, s makes a step.",
    start_from: "Start from",
    start_from_tip: "Take the points of {name} and change them.",
    step: "step",
    step_tip: "Level up to the next point, then a step (key s).",
    add_tip: "Add a point after the chosen one. Or double-click the plot.",
    remove_tip: "Remove the chosen point (Delete). Or right-click it.",
    dense: "dense",
    noise: "noise",
    video: "video",
    place: "at {progress} %: {density} %",
    point: "Point at {progress} percent, density {density} percent",
    predicted: "{steps} steps compute {exact} % of the block pairs and skip {skipped} %.",
    predicted_layers: "{steps} steps compute {exact} % of the block pairs and skip {skipped} % (without layer settings).",
    map_label: "Steps from left to right, layers from top to bottom.",
    map_sparse: "sparse {low}-{high} %",
    map_skipped: "skipped",
    map_dense: "dense: {reason}",
    map_step: "Step {step}, {pace} per step",
    map_step_of: "Step {step} of {steps}, {pace} per step, {left} left",
    map_done: "{steps} steps in {total}, {pace} per step",
    map_cut: "(the first {shown} of {layers} layers)",
    clip_play: "Play",
    clip_pause: "Pause",
    clip_frame: "Frame",
    clip_of: "{frame} of {frames}",
    clip_thinned: "Every {every}. frame.",
    clip_shrunk: "Shown at {width}x{height}.",
    clip_gone: "The picture is no longer on the server: run the workflow again.",
    compare_label: "Drag to part the two clips. Space plays, comma and full stop go frame by frame.",
    compare_difference: "difference x 4",
    compare_difference_tip: "Show where the two differ.",
    maps_label: "Click a place: what it attends to is bright. Arrow keys move the place, comma and full stop the frame.",
    maps_bars: "How much of the attention goes to each frame. Click one to see it.",
    maps_frame: "frame",
    maps_step: "step",
    maps_layer: "layer",
    maps_head: "head",
    maps_kept: "computed",
    maps_kept_tip: "Show which blocks are computed exactly; the dark ones count through their tail.",
    maps_row: "{kept} % of the blocks are computed; they hold {mass} % of the draft.",
    maps_here_kept: "{share} % of the draft, computed exactly.",
    maps_here_skipped: "{share} % of the draft, through its tail.",
    maps_none: "Nothing of the last run was sparse.",
    maps_dense: "Step {step}, layer {layer} was dense.",
    maps_merged: "Shown together: {count} key blocks each.",
    maps_thinned: "Every {stride}. query block is kept: the nearest one is outlined.",
    speed_up: "Speed up with DraftAttention",
    by_sampler: "Taken from {title}: {steps} steps.",
    by_sampler_share: "Taken from {title}: {steps} steps at denoise {denoise} are the last of {whole}.",
  },
}

/**
 * @param {keyof typeof WORDS.en} key
 * @param {Record<string, string|number>} [values] for the places in braces
 */
export function say(key, values = {}) {
  const language = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en"
  const text = WORDS[language]?.[key] ?? WORDS.en[key]
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? `{${name}}`)
}
