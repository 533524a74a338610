"""One report of a run over ranks: every call and every evaluation counted once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...phrase import Foreign, Phrase
from ..report import Call, RunReport
from .ranks import About, Ranks


def merged_report(ranks: Ranks, report: RunReport) -> RunReport:
    """The report of all ranks, the same on each, from the one of this rank's heads. Every rank asks for it at once.

    A call has the pairs of all its heads and their mean density; it took as long as on the slowest rank. Tails stand
    in the order of the heads. What ranks decide together is in each report already and taken from this one.
    """
    words = torch.frombuffer(bytearray(json.dumps(_told(report)).encode()), dtype=torch.uint8)
    heard = [
        json.loads(bytes(said.to(torch.uint8).tolist()).decode())
        for said in ranks.exchange(About.REPORT, words.double())
    ]
    return merge(report, heard)


def _told(report: RunReport) -> dict[str, Any]:
    return {
        "calls": [
            [None if c.density is None else float(c.density), c.pairs, c.seconds(), c.tail_work] for c in report.calls
        ],
        "evaluations": [seconds() for _, seconds in report.evaluations],
        "tails": list(report.tails.items()),
        "tail_heads": list(report.tail_heads.items()),
        "tail_gains": list(report.tail_gains.items()),
        "tail_errors": list(report.tail_errors.items()),
        "notes": report.notes,
    }


def merge(own: RunReport, heard: Sequence[dict[str, Any]]) -> RunReport:
    """`merged_report`, from what each rank said of its report (`heard`, in order of ranks)."""
    # Those of this rank keep their keys; the others' came as plain texts.
    mine = {str(note): note for note in own.notes}
    told = dict.fromkeys(note for said in heard for note in said["notes"])
    own.notes[:] = [mine.get(note) or Foreign(note) for note in told]
    if len({len(said["calls"]) for said in heard}) > 1 or len({len(said["evaluations"]) for said in heard}) > 1:
        own.note(
            Phrase(
                "note_ranks_differ",
                "the ranks counted different numbers of calls: what is reported is of this rank's heads alone",
            )
        )
        return own
    own.calls[:] = [_merged(call, [said["calls"][i] for said in heard]) for i, call in enumerate(own.calls)]
    own.evaluations[:] = [
        (step, _constant(max(said["evaluations"][i] for said in heard))) for i, (step, _) in enumerate(own.evaluations)
    ]
    heads = [{layer: len(names) for layer, names in said["tails"]} for said in heard]
    numbers = {layer: _joined(parts) for layer, parts in _by_layer(heard, "tail_heads")}
    own.tail_heads = {}
    own.tails, own.tail_gains = (
        {
            layer: tuple(x for _, x in sorted(zip(numbers[layer], _joined(parts), strict=True)))
            for layer, parts in _by_layer(heard, what)
            if layer in numbers
        }
        for what in ("tails", "tail_gains")
    )
    own.tail_errors = {
        layer: {
            name: sum(part[name] * of[layer] for part, of in zip(parts, heads, strict=True))
            / sum(of[layer] for of in heads)
            for name in parts[0]
            if all(name in part for part in parts)
        }
        for layer, parts in _by_layer(heard, "tail_errors")
    }
    return own


def _joined(parts: Sequence[Sequence[Any]]) -> list[Any]:
    return [each for part in parts for each in part]


def _by_layer(heard: Sequence[dict[str, Any]], what: str) -> list[tuple[int, list[Any]]]:
    """What every rank has for a layer, layer by layer."""
    of_ranks = [dict(said[what]) for said in heard]
    return [(layer, [of[layer] for of in of_ranks]) for layer in of_ranks[0] if all(layer in of for of in of_ranks)]


def _merged(call: Call, parts: Sequence[Sequence[Any]]) -> Call:
    densities, pairs, seconds, tails = zip(*parts, strict=True)
    total = sum(pairs)
    position = None if call.position is None else replace(call.position, first_head=0, all_heads=0, heads=())
    if call.position is None or not total:
        return replace(call, position=position, seconds=_constant(max(seconds)))

    def mean(values: Sequence[float]) -> float:
        return float(sum(value * share for value, share in zip(values, pairs, strict=True)) / total)

    density = None if call.density is None else mean([1.0 if d is None else d for d in densities])
    return Call(position, density, call.reason, total, _constant(max(seconds)), mean(tails))


def _constant(seconds: float) -> Any:
    return lambda: seconds
