"""Runs in ComfyUI's Python: what users choose on Skip Steps, beside published presets and a second Skip Steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import host
from skipped_runs import SPREAD, STEPS, counted, settings, skipping
from toy_runs import calm, run, wan

CHECKS, check = host.registry()


@check("beside the preset paper a Skip Steps node skips, in either order, and speed does not")
def _() -> None:
    planned = settings(**SPREAD).planned_steps(STEPS)
    paper = {"preset": "paper", "speed": "max"}

    def made(before: bool, after: bool) -> tuple[int, Any]:
        patched, handle = host.apply(skipping(calm(wan()), **SPREAD)[0] if before else calm(wan()), **paper)
        patched, calls = counted(skipping(patched, **SPREAD)[0] if after else patched)
        run(patched, steps=STEPS)
        report = handle.report
        assert report.calls_sparse > 0 and report.outcomes["computed"] == len(calls), report.summary()
        return len(calls), report

    assert made(False, False)[0] == STEPS, "speed skipped beside paper"
    for before, after in ((True, False), (False, True)):
        computed, report = made(before, after)
        assert computed == len(planned) < STEPS, (before, after)
        assert report.outcomes["forecast"] == STEPS - len(planned)


@check("Skip Steps beside attention that is dense by plan: its line says so, and nothing warns")
def _() -> None:
    patched, handle = host.apply(skipping(calm(wan()), **SPREAD)[0], sparsity=0.0)
    run(patched, steps=STEPS)
    assert handle.report.skipped > 0 and "attention dense, as planned" in handle.report.summary()
    assert not handle.report.notes, handle.report.notes
    # Without skipped steps such a run is told what to do.
    plain, handle = host.apply(calm(wan()), sparsity=0.0)
    run(plain, steps=STEPS)
    assert any("nothing was sparse" in note for note in handle.report.notes)


@check(
    "a Skip Steps node before or behind DraftAttention Sparse with speed decides over the skipping, and only over it"
)
def _() -> None:
    def made(rule: dict[str, Any] | None, before: bool) -> Any:
        """The handle of a run with both nodes, or without Skip Steps."""
        model = skipping(calm(wan()), **rule)[0] if rule and before else calm(wan())
        patched, handle = host.apply(model, speed="max")
        patched, calls = counted(skipping(patched, **rule)[0] if rule and not before else patched)
        run(patched, steps=STEPS)
        assert handle.report.calls_sparse > 0 and handle.report.outcomes["computed"] == len(calls)
        return handle

    alone = made(None, False).run.settings
    for rule in ({**SPREAD, "share": 0.6}, {"threshold": 0.0}):
        node, found = settings(**rule), []
        planned = node.planned_steps(STEPS) if node.rule == "spread" else set(range(STEPS))
        assert planned != alone.skip.planned_steps(STEPS)
        for before in (True, False):
            handle = made(rule, before)
            assert handle.run.settings == replace(alone, skip=node), (rule, before)
            report = handle.report
            computed = {made.index for made in report.decisions if str(made.outcome) == "computed"}
            assert computed == planned, (rule, before, report.summary())
            found.append((report.calls_sparse, report.calls_dense(), report.sparse_density()))
        assert found[0] == found[1], found


@check("of two Skip Steps nodes the newer, which decides, is told how the run goes; both have its report")
def _() -> None:
    adapter = host.pack("nodes.host.adapter")
    told: tuple[list[str], list[str]] = ([], [])
    first, one = adapter.apply_skip_steps(calm(wan()), settings(threshold=0.0), told[0].append)
    second, two = adapter.apply_skip_steps(first, settings(**SPREAD), told[1].append)
    run(second, steps=STEPS)
    assert told[0] == [] and told[1][-1] == two.report.summary(), told
    assert two.report.skipped > 0 and one.report is two.report and one.run is two.run
    run(first, steps=STEPS)
    assert told[0][-1] == one.report.summary() and one.report.skipped == 0 and one.report is not two.report


@check("Skip Steps refuses a start that is not below its end before anything runs, and says what to write")
def _() -> None:
    cls = host.pack("nodes.skip_steps").DraftAttentionSkipSteps
    given = {"rule": "spread", "threshold": 0.1, "first_steps": 3}
    for start, end in ((0.8, 0.2), (0.5, 0.5), (0.0, 2.0)):
        said = cls.validate_inputs(start=start, end=end)
        assert said == f"start: from {start} to {end} is no part of the denoising; write two numbers from 0 to 1, " + (
            "the start below the end, such as 0.2 and 0.8"
        )
        # Values that came through links are seen when the node runs.
        try:
            cls.execute(wan(), **given, start=start, end=end)
        except ValueError as error:
            assert str(error) == said
        else:
            raise AssertionError("it was let pass")
    assert cls.validate_inputs() is True and cls.validate_inputs(start=0.2) is True
    assert cls.validate_inputs(start=0.2, end=0.8) is True
