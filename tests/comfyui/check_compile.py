"""Runs in ComfyUI's Python: torch.compile of the patched model, and nothing compiled again at a later step or run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import host
from skipped_runs import FORECAST, SPREAD, skipping
from toy_runs import LAYERS, calm, difference, node, run, wan

CHECKS, check = host.registry()
STEPS = 3


def compiled_model(model: Any, backend: str) -> Any:
    """As the host's own node makes it."""
    return node("nodes_torch_compile", "TorchCompileModel").execute(model, backend).args[0]


def with_compiled_blocks(model: Any) -> Any:
    """As other packs make it: every block on its own."""
    import torch

    patched = model.clone()
    for layer in range(LAYERS):
        name = f"diffusion_model.blocks.{layer}"
        patched.add_object_patch(name, torch.compile(patched.get_model_object(name), backend="eager"))
    return patched


def failed_guards() -> str:
    """Why something was compiled again, in dynamo's words."""
    from torch._dynamo.utils import guard_failures

    return "; ".join(str(reason).splitlines()[0] for reasons in guard_failures.values() for reason in reasons)


def assert_compiled_once(make: Callable[[], tuple[Any, Any]]) -> None:
    """Two runs agree with the run that is not compiled, are sparse, and make graphs in their first step only.

    Args:
        make: the compiled model and its report handle.
    """
    import torch._dynamo.utils

    plain = run(host.apply(wan())[0], steps=STEPS)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    model, handle = make()
    graphs: list[int] = []
    for _ in range(2):
        out = run(model, steps=STEPS, callback=lambda *_: graphs.append(counters["stats"]["unique_graphs"]))
        assert handle.report.calls_sparse == STEPS * LAYERS, handle.report.summary()
        assert handle.report.notes == []
        assert difference(out, plain) < 1e-4
    assert graphs == [graphs[0]] * (2 * STEPS) and graphs[0] > 0, f"{graphs}: {failed_guards()}"


@check("TorchCompileModel after ours, or before")
def _() -> None:
    def after() -> tuple[Any, Any]:
        patched, handle = host.apply(wan())
        return compiled_model(patched, "eager"), handle

    assert_compiled_once(after)
    assert_compiled_once(lambda: host.apply(compiled_model(wan(), "eager")))


@check("TorchCompileModel under Skip Steps, before or after: answered as without it, nothing compiled again")
def _() -> None:
    import torch._dynamo.utils

    counters = torch._dynamo.utils.counters
    for rule, before in product((FORECAST, SPREAD), (True, False)):
        plain, handle = skipping(calm(wan()), **rule)
        expected = run(plain, steps=12)
        assert handle.report.skipped > 0
        decided = [(str(made.outcome), made.corrected) for made in handle.report.decisions]
        assert any(corrected for _, corrected in decided) == (rule is SPREAD)
        torch._dynamo.reset()
        counters.clear()
        if before:
            model, handle = skipping(compiled_model(calm(wan()), "eager"), **rule)
        else:
            patched, handle = skipping(calm(wan()), **rule)
            model = compiled_model(patched, "eager")
        graphs: list[int] = []
        for _ in range(2):
            out = run(model, steps=12, callback=lambda *_, kept=graphs: kept.append(counters["stats"]["unique_graphs"]))
            assert [(str(made.outcome), made.corrected) for made in handle.report.decisions] == decided
            assert difference(out, expected) < 1e-4
        assert graphs == [graphs[0]] * 24 and graphs[0] > 0, f"{graphs}: {failed_guards()}"


@check("TorchCompileModel with inductor")
def _() -> None:
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as reason:
        raise host.Absent(f"inductor has no C++ compiler here: {reason}") from None

    def inductor() -> tuple[Any, Any]:
        patched, handle = host.apply(wan())
        return compiled_model(patched, "inductor"), handle

    assert_compiled_once(inductor)


@check("blocks compiled one by one")
def _() -> None:
    def by_block() -> tuple[Any, Any]:
        patched, handle = host.apply(wan())
        return with_compiled_blocks(patched), handle

    assert_compiled_once(by_block)
