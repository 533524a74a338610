"""A whole call by kernels: draft, selection, tail and attention, a group of heads after the other."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ...geometry.layout import LayoutTables
from ...method.draft import Draft
from ...method.policy import Policy
from ...method.tail.expand import Tail
from ..request import AttendRequest, Listed, new_output
from . import door
from .head_groups import head_groups


class AttendListed(Protocol):
    """An `attend`: writes the output of a request into `out`, given its selection as kernels walk it, and K and V in
    block order."""

    def __call__(
        self,
        request: AttendRequest,
        *,
        listed: Listed,
        in_order: tuple[Tensor, Tensor] | None,
        out: Tensor,
    ) -> object: ...


def whole_call(
    attend: AttendListed,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, AttendRequest]:
    """Output (B, H, L, D) and the request that the call amounts to; errors as they come. No host synchronisation."""
    out = new_output(q)
    keeps, counts, tails = [], [], []
    for part in head_groups(tables.layout, q.shape[0], q.shape[1]):
        request, _ = attend_group(attend, out, q, k, v, tables, policy, key_bias, scale, part)
        assert request.counts is not None
        keeps.append(request.keep)
        counts.append(request.counts)
        tails.append(request.tail)
        # Freed before the next group asks for the same.
        del request, _
    keep = keeps[0] if len(keeps) == 1 else torch.cat(keeps, dim=1)
    count = counts[0] if len(counts) == 1 else torch.cat(counts, dim=1)
    return out, AttendRequest(q, k, v, tables, keep, _joined(tails), key_bias, scale, count)


def attend_group(
    attend: AttendListed,
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: LayoutTables,
    policy: Policy,
    key_bias: Tensor | None,
    scale: float,
    part: slice,
) -> tuple[AttendRequest, Draft]:
    """Compute the heads `part` of a call into those of `out` (B, H, L, D); their request and draft."""
    draft, tail, in_order = door.prepare(q, k, v, tables, policy, copy=True, part=part)
    selected = door.select(draft, tables, policy, scale, heads=q.shape[1], part=part)
    inputs = q[:, part], k[:, part], v[:, part], tables
    request = AttendRequest(*inputs, selected.keep, tail, key_bias, scale, selected.counts)
    attend(request, listed=door.listed(selected), in_order=in_order, out=out[:, part])
    return request, draft


def _joined(tails: list[Tail | None]) -> Tail | None:
    """The tail of all heads from those of groups, which have the same parts."""
    known = [tail for tail in tails if tail is not None]
    if len(known) < 2:
        return known[0] if known else None

    def join(*parts: Tensor | None) -> Tensor | None:
        found = [part for part in parts if part is not None]
        return torch.cat(found, dim=1) if found else None

    log_count = torch.cat([tail.log_count for tail in known])
    k_mean, v_mean = (
        torch.cat([tail.k_mean for tail in known], dim=1),
        torch.cat([tail.v_mean for tail in known], dim=1),
    )
    cov, u, w = (join(*(getattr(tail, name) for tail in known)) for name in ("cov", "u", "w"))
    return Tail(log_count, k_mean, v_mean, cov, u, w)
