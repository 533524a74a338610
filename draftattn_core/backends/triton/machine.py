"""What the process and its devices can do with kernels. Triton is imported when one of these is first asked."""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor

from ...phrase import Phrase, Text
from .trust import in_short

OLDEST_TRITON = (3, 3)
# The oldest whose products of FP8, summed in float16, become those instructions. 3.3 and 3.4 do not compile them for
# sm_89, and use others for sm_120.
OLDEST_FP8 = (3, 5)


@functools.cache
def triton_missing() -> Text | None:
    """Why Triton cannot be used in this process, or None."""
    try:
        import triton

        version = str(triton.__version__)
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return Phrase("triton_none", "Triton is not installed (on Windows: pip install triton-windows)")
        return _broken(error)
    except Exception as error:
        return _broken(error)
    if (old := _too_old(version, OLDEST_TRITON)) is not None:
        return old
    try:
        from ....kernels import attend_pointer  # noqa: F401
    except Exception as error:
        return not_imported(error)
    return None


def _too_old(version: str, oldest: tuple[int, int]) -> Text | None:
    if tuple(map(int, re.findall(r"\d+", version)[:2])) >= oldest:
        return None
    return Phrase(
        "triton_old",
        "Triton {version} is too old: {oldest} or newer is needed",
        version=version,
        oldest=".".join(map(str, oldest)),
    )


def _broken(error: Exception) -> Text:
    return Phrase("triton_broken", "Triton is installed but broken: {error}", error=in_short(error))


def not_imported(error: Exception) -> Text:
    """What is said of kernels whose file raises."""
    return Phrase("triton_no_kernels", "the kernels cannot be imported: {error}", error=in_short(error))


def interpreted() -> bool:
    """Whether Triton interprets its kernels (TRITON_INTERPRET): they then run on CPU tensors, for tests."""
    from ....kernels import attend_pointer, runtime

    return runtime.interpreted(attend_pointer.attend_kernel)


def runs_on(x: Tensor) -> bool:
    """Whether kernels can run where x is."""
    if x.device.type == "cuda":
        return True
    try:
        return interpreted()
    except Exception:
        # Whatever a Triton that is missing or broken raises.
        return False


def architecture(device: torch.device) -> str:
    """The device's row in the configuration table."""
    from ....kernels.configs import architecture_of

    if device.type != "cuda":
        return "sm_80"
    gcn = torch.cuda.get_device_properties(device).gcnArchName if torch.version.hip else None
    return architecture_of(torch.cuda.get_device_capability(device), gcn)


def fp8_missing(device: torch.device) -> Text | None:
    """Why kernels do not multiply values in FP8 on a device (`configs.fp8_sums`), or None; interpreted ones do."""
    none = Phrase("fp8_none", "this {device} device has no FP8 products summed in float16", device=device.type)
    if triton_missing() is not None:
        return none
    if device.type != "cuda":
        return None if device.type == "cpu" and interpreted() else none
    import triton

    from ....kernels import configs

    return _too_old(str(triton.__version__), OLDEST_FP8) if configs.fp8_sums(architecture(device)) else none


def codes_first(device: torch.device) -> bool:
    """Whether scores of INT8 codes are to be expected faster on a device (`kernels.configs.codes_first`)."""
    if device.type != "cuda" or triton_missing() is not None:
        return False
    from ....kernels import configs

    return configs.codes_first(architecture(device))
