"""The pack speaks the user's language: nodes, choices, what scripts say, and what the server tells by keys."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.browser.canvas import Canvas
from tools.comfyui.path import PACK_ROOT

REPORT = "DraftAttentionReport"
# Words that few English sentences do without.
ENGLISH = re.compile(r"\b(the|is|are|was|with|not|no|its|this|for|dense|density|layer|skipped)\b")


def texts(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((PACK_ROOT / "locales" / language / "main.json").read_text("utf-8"))[
        "draftattention"
    ]
    return found


def filled(language: str, key: str, **values: Any) -> str:
    text = texts(language)[key]
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


SAME_SCRIPTS = pytest.mark.any_renderer("both renderers show what the same scripts have made of the language's texts")


def spoken(language: str, *marks: pytest.MarkDecorator) -> Any:
    """A parameter whose test finds the page in that language."""
    return pytest.param(language, marks=[pytest.mark.language(language), *marks])


@SAME_SCRIPTS
@pytest.mark.language("zh")
def test_a_run_is_told_in_the_language(canvas: Canvas) -> None:
    ids = canvas.load_demo()
    apply, sampler = ids["ApplyDraftAttention"], ids["KSampler"]
    report = canvas.add(REPORT, (900, 100))
    canvas.connect(apply, "report", report, "report")
    canvas.connect(sampler, "LATENT", report, "after")
    canvas.js(
        """(id) => {
            globalThis.liveTexts = []
            app.api.addEventListener("draftattention.live_text", () => {
                const widgets = app.graph.getNodeById(id).widgets
                globalThis.liveTexts.push(widgets.find((one) => one.name === "$$node-text-preview")?.value)
            })
        }""",
        apply,
    )
    assert canvas.run() == "execution_success"
    assert filled("zh", "live_step_of", step=1, steps=2) in canvas.js("() => globalThis.liveTexts")
    canvas.until(
        "(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'text').element.innerText.length > 200",
        report,
    )
    told, verdict = canvas.text(report, "text"), canvas.text(apply, "verdict")
    assert "次自注意力调用中有" in verdict and "DraftAttention：" in verdict
    for english in ("of their token pairs", "self-attention calls", "Tails the heads", "Run: "):
        assert english not in told, told
    assert "稀疏调用精确计算了其 token 对的" in told and "按测得的误差" not in told
    map_text = canvas.text(apply, "live_map")
    assert "步用时" in map_text
    words = "(id) => [...app.graph.getNodeById(id).widgets.find((one) => one.name === 'picture').element" + (
        ".querySelectorAll('span')].map((one) => one.textContent)"
    )
    canvas.until(f"(id) => ({words})(id).length > 8", report)
    on_picture = canvas.js(words, report)
    assert texts("zh")["chart_density_map"] in on_picture and texts("zh")["chart_steps"] in on_picture
    assert [text for text in on_picture if ENGLISH.search(text)] == []


@pytest.mark.parametrize("language", [spoken("zh"), spoken("ja", SAME_SCRIPTS), spoken("ko", SAME_SCRIPTS)])
def test_a_node_its_choices_and_its_scripts_speak_the_language(canvas: Canvas, language: str) -> None:
    node = canvas.add("ApplyDraftAttention")
    defs = json.loads((PACK_ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))["ApplyDraftAttention"]
    assert canvas.js("(id) => app.graph.getNodeById(id).title", node) == defs["display_name"]
    assert canvas.widget(node, "preset", "label") == defs["inputs"]["preset"]["name"]
    label = canvas.js(
        """([id, value]) => {
            const { options } = app.graph.getNodeById(id).widgets.find((one) => one.name === "preset")
            return [options.getOptionLabel(value), options.getOptionLabel("adaspa")]
        }""",
        [node, "quality"],
    )
    word = texts(language)["option_preset_quality"]
    assert label == [filled(language, "option_label", word=word, value="quality"), "adaspa"]
    if canvas.nodes_2:
        shown = filled(language, "option_label", word=texts(language)["option_preset_auto"], value="auto")
        canvas.node_element(node).get_by_text(shown).first.wait_for()
    assert canvas.widget(node, "preset") == "auto", "what is saved is the value"
    assert texts(language)["no_run"] in canvas.text(node, "verdict")
    canvas.set(node, dense_layers="first")
    wanted = filled(language, "check_layers", part="'first'")
    canvas.until("(wanted) => document.body.innerText.includes(wanted)", wanted)


@pytest.mark.parametrize("language", [spoken("zh"), spoken("ja", SAME_SCRIPTS), spoken("ko", SAME_SCRIPTS)])
def test_the_doctor_speaks_the_language(canvas: Canvas, language: str) -> None:
    node = canvas.add("DraftAttentionDoctor")
    assert canvas.run() == "execution_success"
    canvas.until(
        "(id) => app.graph.getNodeById(id).widgets.find((one) => one.name === 'text').element.innerText.length > 200",
        node,
    )
    told = canvas.text(node, "text")
    for key in ("fact_system", "fact_device", "doctor_backends"):
        assert texts(language)[key] in told, told
    assert filled(language, "doctor_auto", backend="torch", device="cpu") in told
    assert [line for line in told.splitlines() if ENGLISH.search(line)] == []


@SAME_SCRIPTS
@pytest.mark.language("fr")
def test_a_language_that_the_pack_lacks_falls_back_to_english(canvas: Canvas) -> None:
    node = canvas.add("ApplyDraftAttention")
    assert texts("en")["no_run"] in canvas.text(node, "verdict")
    assert canvas.widget(node, "preset", "label") == "preset"
