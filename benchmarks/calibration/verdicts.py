"""The targets for budgets and profiles, and what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.calibration.methods import ONLINE, ORACLE, PROFILE, UNIFORM
from benchmarks.calibration.tables import At, Row, WholeRow, error_at, work_at
from benchmarks.verdict import Verdict

LEAST_RATIO = 1.35
LEAST_GAIN_DB = 3.0
MOST_ABOVE_ORACLE = 0.05
SEEDS_ASKED = 4


def of_method(rows: Sequence[Row], method: str) -> list[Row]:
    return [row for row in rows if row.method == method]


def common(*rows: Row) -> list[At]:
    """Evaluations that all rows were measured on."""
    found = set(rows[0].figures)
    for row in rows[1:]:
        found &= set(row.figures)
    return sorted(found)


def equal_error(rows: Sequence[Row], method: str) -> Verdict:
    """How much more work one density for all needs for the same error."""
    target = f"{method}: at equal error at most 1/{LEAST_RATIO:g} of the uniform work at 10 to 30 %"
    found = ratios(rows, method)
    if not found:
        return Verdict(target, None, "not measured")
    met = all(ratio is not None and ratio >= LEAST_RATIO for ratio in found.values())
    reason = ""
    if not met and (best := ratios(rows, ORACLE)):
        reason = f". Budgets solved on the call itself reach {_ratio_words(best)}"
    return Verdict(target, met, f"uniform work over its work, by its work: {_ratio_words(found)}{reason}")


def ratios(rows: Sequence[Row], method: str) -> dict[float, float | None]:
    """By a method's mean work, how many times as much one density for all needs for its error; None where no uniform
    row that was measured has it."""
    uniform, found = of_method(rows, UNIFORM), {}
    for row in of_method(rows, method):
        at = common(row, *uniform) if uniform else []
        if at:
            work = row.mean("work", at)
            needed = work_at(uniform, row.mean("rel_l2", at), at)
            found[work] = None if needed is None else needed / work
    return found


def _ratio_words(found: dict[float, float | None]) -> str:
    return ", ".join(
        f"{work:.3f}: {'beyond the measured works' if ratio is None else f'{ratio:.2f}'}"
        for work, ratio in sorted(found.items())
    )


def near_oracle(rows: Sequence[Row], method: str = PROFILE) -> Verdict:
    """How far a profile of other seeds is from budgets solved on the call itself."""
    target = f"{method}: within {MOST_ABOVE_ORACLE:.0%} of budgets solved on the call itself"
    above = excess(rows, method)
    if not above:
        return Verdict(target, None, "not measured")
    met = all(value <= MOST_ABOVE_ORACLE for value in above.values())
    reason = ""
    if not met and (online := excess(rows, ONLINE)):
        reason = (
            f". Budgets measured on the judged run itself, on an earlier evaluation, are above it as well, by "
            f"{_percent_words(online)}: what changes within a bucket and what 64 rows miss is in both"
        )
    return Verdict(target, met, f"error above it, by budget: {_percent_words(above)}{reason}")


def _percent_words(found: dict[float, float]) -> str:
    return ", ".join(f"{budget:.2f}: {value:+.1%}" for budget, value in sorted(found.items()))


def excess(rows: Sequence[Row], method: str) -> dict[float, float]:
    """By budget, how much larger the mean error is than the oracle's at the same work."""
    oracle, found = of_method(rows, ORACLE), {}
    for row in of_method(rows, method):
        at = common(row, *oracle) if oracle else []
        if not at:
            continue
        best = error_at(oracle, row.mean("work", at), at)
        if best is None:
            same = next((other for other in oracle if other.budget == row.budget), None)
            best = None if same is None else same.mean("rel_l2", at)
        if best is not None:
            found[row.budget] = row.mean("rel_l2", at) / best - 1.0
    return found


def gain_db(rows: Sequence[WholeRow], method: str, *, real: bool) -> Verdict:
    """PSNR against one density for all, at the same mean density."""
    where = f"the real size, mean of {SEEDS_ASKED} seeds or more" if real else "the small grid"
    target = f"{method}: PSNR at equal work {LEAST_GAIN_DB:+g} dB at {where}"
    gains: dict[float, list[float]] = {}
    for row in rows:
        uniform = next((u for u in rows if (u.method, u.budget) == (UNIFORM, row.budget)), None)
        if row.method == method and uniform is not None:
            gains[row.budget] = [row.psnr[seed] - uniform.psnr[seed] for seed in row.psnr]
    if not gains:
        return Verdict(target, None, "not measured")
    words = ", ".join(
        f"{mean:g}: {sum(each) / len(each):+.1f} dB ({', '.join(f'{gain:+.1f}' for gain in each)})"
        for mean, each in sorted(gains.items())
    )
    if real and min(map(len, gains.values())) < SEEDS_ASKED:
        return Verdict(target, None, f"{words}; too few seeds for a verdict")
    met = all(sum(each) / len(each) >= LEAST_GAIN_DB for each in gains.values())
    return Verdict(target, met, f"by mean density: {words}")


def all_verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """Those of captured evaluations."""
    return [equal_error(rows, ONLINE), equal_error(rows, PROFILE), near_oracle(rows)]
