"""Runs in ComfyUI's Python: torch.compile of the patched model."""

from __future__ import annotations

import host
from toy_runs import LAYERS, difference, run, wan

CHECKS, check = host.registry()


@check("torch.compile of the whole model")
def _() -> None:
    try:
        from comfy_api.torch_helpers import set_torch_compile_wrapper
    except ImportError:
        raise host.Absent("this ComfyUI has no set_torch_compile_wrapper") from None
    patched, handle = host.apply(wan())
    plain = run(patched)
    compiled = patched.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    out = run(compiled)
    assert handle.report.calls_sparse == 2 * LAYERS, handle.report.summary()
    assert difference(out, plain) < 1e-4
