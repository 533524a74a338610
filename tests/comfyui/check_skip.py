"""Runs in ComfyUI's Python: the node Skip Steps, alone and with Apply, under every sampler, beside other caches."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import host
import torch
from toy_runs import LATENT, LAYERS, TEXT, Logged, calm, difference, half_dense, node, run, wan

CHECKS, check = host.registry()
OTHER_TEXT = [[torch.zeros(1, 7, 64), {}]]
STEPS = 12
# ComfyUI's nodes that skip steps, and by which name a user is told of each.
CORE_CACHES = {"EasyCacheNode": "easycache", "LazyCacheNode": "lazycache"}


# The toy model has random weights: nothing about its output can be foretold, so the threshold lets everything pass.
def skipping(model: Any, threshold: float = 100.0, first: int = 3, rule: str = "forecast", **more: Any) -> Any:
    settings = host.pack("draftattn_core.run.step_cache").StepCacheSettings(rule, threshold, first, **more)
    return host.pack("nodes.host.adapter").apply_skip_steps(model, settings)[0]


def counted(model: Any) -> tuple[Any, list[int]]:
    """The model, and a list that grows with every call of its network."""
    calls: list[int] = []

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return executor(*args, **kwargs)

    patched = model.clone()
    patched.add_wrapper_with_key("diffusion_model", "check", count)
    return patched, calls


def beside(name: str, model: Any = None) -> Any:
    """A model with one of ComfyUI's own caches on it, which at a threshold of 0 skips nothing."""
    model = wan() if model is None else model
    return node("nodes_easycache", name).execute(model, 0.0, 0.15, 0.95, False).args[0]


def refused(model: Any, cache: str, remedy: str = "remove one of the two") -> None:
    """Raises unless a run of the model is refused, before sampling starts, for the cache named, with a remedy."""
    patched, calls = counted(model)
    try:
        run(patched, steps=STEPS)
    except ValueError as error:
        assert f"another cache ({cache})" in str(error) and remedy in str(error), error
    else:
        raise AssertionError(f"strict let {cache} pass")
    assert not calls, "sampling had begun"


@check("Skip Steps alone: fewer calls of the model, its attention untouched, and threshold 0 is the model to the bit")
def _() -> None:
    model = wan()
    plain = run(model, steps=STEPS)
    for rule in ("forecast", "easycache"):
        patched, calls = counted(skipping(model, rule=rule))
        assert "optimized_attention_override" not in patched.model_options["transformer_options"]
        skipped = run(patched, steps=STEPS)
        assert 4 <= len(calls) < STEPS and difference(skipped, plain) > 0, (rule, len(calls))
        patched, calls = counted(skipping(model, threshold=0.0, rule=rule))
        assert torch.equal(run(patched, steps=STEPS), plain) and len(calls) == STEPS
    assert torch.equal(run(model, steps=STEPS), plain)


@check("Skip Steps with Apply, in either order: both act, in one report")
def _() -> None:
    model, found = wan(), []
    for before in (True, False):
        if before:
            patched, handle = host.apply(skipping(model), schedule=half_dense())
        else:
            sparse, handle = host.apply(model, schedule=half_dense())
            patched = skipping(sparse)
        patched, calls = counted(patched)
        found.append(run(patched, steps=STEPS))
        report = handle.report
        assert report.outcomes["computed"] == len(calls) < STEPS and sum(report.outcomes.values()) == STEPS
        assert report.calls_sparse > 0 and len(report.calls) >= LAYERS * len(calls)
        assert "forecast" in report.summary() and report.skip_error() is not None
    assert torch.equal(*found)


@check("Skip Steps applied twice: the newer replaces the older")
def _() -> None:
    patched, calls = counted(skipping(skipping(wan()), threshold=0.0))
    run(patched, steps=STEPS)
    assert len(calls) == STEPS


@check("Skip Steps under guidance stacked, split and none, a batch of two, and every kind of sampler")
def _() -> None:
    for negative, cfg in ((TEXT, 3.0), (OTHER_TEXT, 3.0), (TEXT, 1.0)):
        patched, calls = counted(skipping(wan()))
        assert torch.isfinite(run(patched, negative=negative, cfg=cfg, steps=STEPS)).all()
        assert len(calls) < STEPS * (2 if negative is OTHER_TEXT else 1), (cfg, len(calls))
    patched, calls = counted(skipping(wan()))
    assert run(patched, LATENT.repeat(2, 1, 1, 1, 1), steps=STEPS).shape[0] == 2 and len(calls) < STEPS
    for sampler in ("heun", "dpmpp_2m", "dpmpp_2s_ancestral", "euler_ancestral", "uni_pc", "dpmpp_2m_sde"):
        model = wan()
        plain_model, every = counted(model)
        plain = run(plain_model, steps=STEPS, sampler=sampler)
        patched, calls = counted(skipping(model))
        found = run(patched, steps=STEPS, sampler=sampler)
        assert torch.isfinite(found).all() and found.shape == plain.shape, sampler
        assert len(calls) < len(every), (sampler, len(calls))


@check("Skip Steps in a run from the middle and in context windows")
def _() -> None:
    import comfy.samplers

    model = wan()
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2 * STEPS)
    patched, calls = counted(skipping(model))
    assert torch.isfinite(run(patched, steps=STEPS, sigmas=sigmas[STEPS:])).all() and len(calls) < STEPS
    windows = node("nodes_context_windows", "WanContextWindowsManualNode")
    model = windows.execute(wan(), 21, 8, "standard_static", 1, False, "pyramid", False).args[0]
    latent = torch.zeros(1, 16, 9, 6, 10)
    plain_model, every = counted(model)
    run(plain_model, latent, steps=STEPS)
    patched, calls = counted(skipping(model))
    assert torch.isfinite(run(patched, latent, steps=STEPS)).all() and len(calls) < len(every)


@check("Skip Steps stands aside at few steps and beside another cache, and says so")
def _() -> None:
    with Logged() as log:
        patched, calls = counted(skipping(wan()))
        run(patched, steps=4)
    assert len(calls) == 4 and log.said("nothing to gain at 4 steps"), log.lines
    patched, handle = host.apply(wan(), speed="max")
    patched, calls = counted(patched)
    with Logged() as log:
        run(patched, steps=4)
    assert len(calls) == 4 and log.said("nothing to gain at 4 steps"), log.lines
    assert any("nothing to gain at 4 steps" in note for note in handle.report.notes), handle.report.notes
    for name, cache in CORE_CACHES.items():
        with Logged() as log:
            run(skipping(beside(name)), steps=STEPS)
        assert log.said(f"another cache ({cache})") and log.said("remove one of the two"), (name, log.lines)
        # Where `speed` alone asked for it, there is no Skip Steps node to remove.
        patched, handle = host.apply(beside(name), speed="max")
        run(patched, steps=STEPS)
        assert handle.report.skipped == 0
        assert any("remove it, or set speed to off" in note for note in handle.report.notes), handle.report.notes


@check(
    "Beside another cache strict refuses to skip steps before sampling starts; without Skip Steps it has no objection"
)
def _() -> None:
    for name, cache in CORE_CACHES.items():
        sparse, handle = host.apply(beside(name), schedule=half_dense(), strict=True)
        refused(skipping(sparse), cache)
        run(sparse, steps=STEPS)
        assert handle.report.calls_sparse > 0
        # Where there is nothing to gain, nothing of ours stands beside it.
        run(host.apply(beside(name), speed="max", strict=True)[0], steps=4)


@check(
    "Skip Steps, another cache and DraftAttention Sparse in every order: nothing is skipped and the cache is named; "
    "strict refuses"
)
def _() -> None:
    for (name, cache), nodes in product(CORE_CACHES.items(), (("skip", "cache"), ("skip", "cache", "sparse"))):
        for order in permutations(nodes):
            for strict in (False, True) if "sparse" in nodes else (False,):
                model, handle = wan(), None
                for one in order:
                    if one == "sparse":
                        model, handle = host.apply(model, schedule=half_dense(), strict=strict)
                    else:
                        model = skipping(model) if one == "skip" else beside(name, model)
                if strict:
                    refused(model, cache)
                    continue
                patched, calls = counted(model)
                with Logged() as log:
                    run(patched, steps=STEPS)
                assert len(calls) == STEPS and log.said(f"skips no steps: another cache ({cache})"), (order, log.lines)
                if handle is not None:
                    assert handle.report.outcomes == {"computed": STEPS} and handle.report.calls_sparse > 0, order
                    assert any(f"another cache ({cache})" in note for note in handle.report.notes), order


@check("Apply's speed and another cache, in either order: attention is sparse, nothing is skipped; strict refuses")
def _() -> None:
    for (name, cache), before in product(CORE_CACHES.items(), (True, False)):
        for strict in (False, True):
            model, handle = host.apply(beside(name) if before else wan(), speed="max", strict=strict)
            model = model if before else beside(name, model)
            if strict:
                refused(model, cache, "remove it, or set speed to off")
                continue
            patched, calls = counted(model)
            run(patched, steps=STEPS)
            assert len(calls) == STEPS and handle.report.outcomes == {"computed": STEPS}, (name, before)
            assert handle.report.calls_sparse > 0, (name, before)
            assert any(f"another cache ({cache})" in note for note in handle.report.notes), handle.report.notes


@check(
    "Apply's speed makes attention sparse and skips steps; a Skip Steps node rules over the skipping, paper never skips"
)
def _() -> None:
    def made(model: Any = None, **choices: Any) -> tuple[list[int], Any]:
        patched, handle = host.apply(calm(wan()) if model is None else model, **choices)
        patched, calls = counted(patched)
        run(patched, steps=STEPS)
        assert handle.report.calls_sparse > 0
        return calls, handle.report

    planned = host.pack("draftattn_core.run.speed").SPEEDS["max"].skip().planned_steps(STEPS)
    calls, report = made(speed="max")
    assert len(calls) == report.outcomes["computed"] == len(planned) < STEPS
    assert report.outcomes["forecast"] == STEPS - len(planned)
    for other in ({"speed": "max", "preset": "paper"}, {"speed": "off"}):
        calls, report = made(**other)
        assert len(calls) == report.outcomes["computed"] == STEPS, other
    calls, report = made(skipping(wan(), threshold=0.0), speed="max")
    assert len(calls) == STEPS, "the node's threshold of 0 was to win"
    assert any("Skip Steps node decides" in note for note in report.notes), report.notes
    calls, report = made(skipping(wan()), speed="off")
    assert len(calls) < STEPS and not any("Skip Steps node decides" in note for note in report.notes)


@check("Skip Steps takes EasyCache's published values for a model")
def _() -> None:
    skip_steps, cache = host.pack("nodes.skip_steps"), host.pack("draftattn_core.run.step_cache")
    for model in host.pack("draftattn_core.run.step_cache.settings").PUBLISHED:
        given = skip_steps._settings(f"easycache, published for {model}", 0.5, 1, 4, (0.0, 1.0), False)
        assert given == cache.StepCacheSettings.published(model, as_share=True), (model, given)
    assert skip_steps._settings("easycache", 0.5, 1, 0, (0.2, 1.0), True) == cache.StepCacheSettings(
        "easycache", 0.5, 1, max_skips=None, windows=((0.2, 1.0),), offload=True
    )
    inputs = {item.id: item for item in skip_steps.DraftAttentionSkipSteps.define_schema().inputs}
    assert set(skip_steps.AS_PUBLISHED) < set(inputs["rule"].options)
    # The rule of new nodes, and the inputs that each rule is said not to read: they change nothing, the others do.
    assert inputs["rule"].default == "spread" == inputs["rule"].options[0] and list(inputs)[-1] == "share"
    given = {"threshold": 0.5, "first": 1, "max_skips": 2, "share": 0.4}
    other = {"threshold": 0.6, "first": 2, "max_skips": 3, "share": 0.7}
    named = {"first": "first_steps", "max_skips": "max_in_a_row"}
    for rule, ignored in inputs["rule"].extra_dict["draftattention"]["by_rule"].items():
        made = [
            skip_steps._settings(rule, window=(0.0, 1.0), offload=False, **{**given, **change})
            for change in ({}, *({name: value} for name, value in other.items()))
        ]
        same = {named.get(name, name) for name, changed in zip(other, made[1:], strict=True) if changed == made[0]}
        assert same == set(ignored), (rule, same)
