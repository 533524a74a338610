"""The pack speaks the user's language: nodes, choices, what scripts say, and what the server tells by keys."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.browser.canvas import Canvas
from tests.browser.test_runs import TAB
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
    canvas.set(node, dense_layers="", blocks="9/9")
    said = filled(language, "check_choice", input=defs["inputs"]["blocks"]["name"])
    canvas.until("(wanted) => document.body.innerText.includes(wanted)", said.partition("{value}")[0] + "'9/9'")


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


@pytest.mark.parametrize("language", [spoken(one, SAME_SCRIPTS) for one in ("zh", "ja", "ko")])
def test_the_sidebar_speaks_the_language_and_breaks_lines_as_it_does(canvas: Canvas, language: str) -> None:
    ids = canvas.load_demo(4)
    canvas.set(ids["ApplyDraftAttention"], preset="custom", sparsity=0.9, dense_start=0.3)
    assert canvas.run() == "execution_success"
    labels = json.loads((PACK_ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))["ApplyDraftAttention"]
    canvas.js(TAB)
    try:
        card = canvas.page.locator(".draftattention-run").first
        card.wait_for()
        time = r"오[전후] \d{1,2}:\d\d:\d\d" if language == "ko" else r"\d{1,2}:\d\d:\d\d"
        assert re.match(rf"{time} +{labels['display_name']}$", card.locator("b").inner_text())
        said = card.inner_text()
        for name, value in {"preset": texts(language)["option_preset_custom"], "sparsity": "0.9"}.items():
            assert f"{labels['inputs'][name]['name']} {value}" in said
        card.locator("summary").click()
        canvas.until("() => document.querySelector('.draftattention-runs .draftattention-map-key').textContent")
        assert [line for line in card.inner_text().splitlines() if ENGLISH.search(line)] == []
        found = canvas.js(
            """() => {
                const box = document.querySelector('.draftattention-runs')
                return [box.lang, getComputedStyle(box).wordBreak]
            }"""
        )
        assert found == [language, {"zh": "normal", "ja": "auto-phrase", "ko": "keep-all"}[language]]
        canvas.page.locator(".draftattention-runs > button").click()
        canvas.until(
            "(word) => document.querySelector('.draftattention-doctor').textContent.includes(word)",
            texts(language)["doctor_backends"],
            timeout=60_000,
        )
        names = "[...document.querySelectorAll('.draftattention-doctor .draftattention-fact > span')]"
        ends = canvas.js(
            f"() => {names}.map((name) => [name.getBoundingClientRect().right, name.scrollWidth - name.offsetWidth])"
        )
        assert len(ends) > 4 and max(end for end, _ in ends) - min(end for end, _ in ends) < 0.5
        assert max(over for _, over in ends) <= 0, "wide letters have room in their column"
    finally:
        canvas.js(TAB)


@pytest.mark.parametrize("language", [spoken(one, SAME_SCRIPTS) for one in ("zh", "ja", "ko")])
def test_words_beside_the_curve_stay_on_a_line_each_and_are_those_of_the_choices(canvas: Canvas, language: str) -> None:
    node = canvas.add("SparsityScheduler")
    canvas.js("(id) => app.graph.getNodeById(id).setSize([320, app.graph.getNodeById(id).size[1]])", node)
    canvas.frames()
    canvas.text(node, "curve_editor")
    words = canvas.js(
        """() => [...document.querySelectorAll('.draftattention-bar :is(button, .draftattention-faint)')]
            .map((one) => [one.innerText, one.clientHeight])"""
    )
    assert texts(language)["option_curve_balanced"] in [word for word, _ in words]
    over = """() => {
        const { scrollWidth, clientWidth } = document.querySelector('.draftattention-bar')
        return scrollWidth - clientWidth
    }"""
    assert max(high for _, high in words) < 26 and canvas.js(over) <= 0


@pytest.mark.any_cell("a function of texts")
def test_a_korean_particle_follows_the_sound_before_it(canvas: Canvas) -> None:
    told = {
        "캡처을(를) 연결": "캡처를 연결",
        "레이어 3은(는)": "레이어 3은",
        "레이어 2은(는)": "레이어 2는",
        "50%이(가)": "50%가",
        "'고급'을(를)": "'고급'을",
        "7(으)로": "7로",
        "6(으)로": "6으로",
        "서울(으)로": "서울로",
        "torch을(를)": "torch을(를)",
    }
    found = canvas.js(
        """async (said) => {
            const { withParticles } = await import('/extensions/draftattention/korean.js')
            return said.map(withParticles)
        }""",
        list(told),
    )
    assert found == list(told.values())


@pytest.mark.any_cell("a function of texts")
def test_wide_letters_count_twice_where_columns_and_lines_are_reckoned(canvas: Canvas) -> None:
    found = canvas.js(
        """async (said) => {
            const { widthOf } = await import('/extensions/draftattention/text_lines.js')
            return said.map(widthOf)
        }""",
        ["PyTorch", "システム", "시스템 2", "设备：cpu", ""],
    )
    assert found == [7, 8, 8, 9, 0]


@SAME_SCRIPTS
@pytest.mark.language("fr")
def test_a_language_that_the_pack_lacks_falls_back_to_english(canvas: Canvas) -> None:
    node = canvas.add("ApplyDraftAttention")
    assert texts("en")["no_run"] in canvas.text(node, "verdict")
    assert canvas.widget(node, "preset", "label") == "preset"
