"""The doctor's findings in words; what is particular to a machine stays as the core says it."""

from __future__ import annotations

from ...draftattn_core.doctor.diagnose import BackendCheck, Diagnosis
from ..words import LINES, Joined, Words, term


def doctor_text(diagnosis: Diagnosis) -> str:
    """The lines of `Diagnosis.text`."""
    facts = diagnosis.machine.facts()
    width = max(len(label) for label, _ in facts)
    lines: list[str] = [
        Words("doctor_fact", label=term("fact", label), gap=" " * (width - len(label)), value=value)
        for label, value in facts
    ]
    lines += ["", Words("doctor_backends"), *map(_check, diagnosis.checks)]
    lost = {(check.device, check.backend): check.lost for check in diagnosis.checks if check.lost}
    lines += [_auto(name, device, lost.get((device, name))) for device, name in diagnosis.chosen().items()]
    if not diagnosis.works:
        lines += ["", Words("doctor_none_works")]
    lines += ["", Words("doctor_advice" if diagnosis.advice else "doctor_no_advice")]
    lines += [Words("doctor_item", text=item) for item in diagnosis.advice]
    return Joined(lines, LINES)


def _auto(backend: str, device: str, lost: str | None) -> Words:
    if lost is None:
        return Words("doctor_auto", backend=backend, device=device)
    return Words("doctor_auto_without", backend=backend, device=device, lost=lost)


def _check(check: BackendCheck) -> Words:
    where = {"backend": check.backend, "device": check.device, "dtype": check.dtype}
    if check.error is None:
        return Words("doctor_refused", **where, refusal=check.refusal or "")
    return Words(
        "doctor_right" if check.right else "doctor_wrong",
        **where,
        error=f"{check.error:.1e}",
        limit=f"{check.tolerance:.1e}",
        seconds=f"{check.seconds:.2f}",
    )
