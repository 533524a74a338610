"""The table of methods: every row has a name, says in words what it is, and belongs to one group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.quality.peer import SOL_BLOCK
from draftattention.draftattn_core import PAPER_TILE, Layout, Policy, Settings, TokenGrid
from draftattention.draftattn_core.geometry.order import Tile
from draftattention.draftattn_core.method.policy import TAILS

Kind = Literal["policy", "sol", "peer_topk", "peer_tau", "rettention"]
Scores = Literal["draft", "cells_lse", "cells_softmax", "true_mass"]


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: short and unique; what the CSV says.
        label: what it is, for readers of the table.
        group: which comparison it belongs to.
        kind: who selects: a `Policy`, the Sol-Attn recipe, comfy-kitchen's rule by count or by threshold, or
            Re-ttention's window, which runs in whole runs only.
        policy: for kind "policy"; its density is what the equal-work solver sets. For the others only the tail counts.
        q_block, k_block, tile, order: see `Layout`.
        scores: what the selection ranks: the draft's block means; the draft of cells of 16 tokens, their pairs put
            together by log-sum-exp, or by softmax over each query cell's row first; the exact softmax mass.
        auto_tail: let the error probe choose each head's tail.
        auto_gain: let it fit each head's tail gain; only a `Policy` with a tail has one, and the backend `kitchen`.
    """

    name: str
    label: str
    group: str
    kind: Kind = "policy"
    policy: Policy = Policy()
    q_block: int = 128
    k_block: int = 64
    tile: Tile | None = None
    order: str = "tile"
    scores: Scores = "draft"
    auto_tail: bool = False
    auto_gain: bool = False

    @property
    def fits_gain(self) -> bool:
        return self.auto_gain and self.kind in ("policy", "peer_topk") and self.policy.has_tail

    def layout(self, grid: TokenGrid) -> Layout:
        return Layout(grid, 0, 0, self.q_block, self.k_block, self.tile, self.order)

    def what_it_does(self) -> Row:
        """The row without its names: two rows that do the same thing are equal then."""
        return replace(
            self, name="", label="", group="", policy=self.policy.with_density(0.0), auto_gain=self.fits_gain
        )


def ours() -> Row:
    """The pack's defaults, whatever they are now."""
    settings = Settings()
    return Row(
        "ours",
        "the defaults of the pack",
        "main",
        policy=settings.policy,
        q_block=settings.q_block,
        k_block=settings.k_block,
        tile=settings.tile,
        order=settings.order,
        auto_tail=settings.auto_tail,
        auto_gain=settings.auto_gain,
    )


def paper() -> Row:
    return Row(
        "paper",
        "DraftAttention as published: 1x8x16, threshold per head, dropped",
        "main",
        policy=Policy.paper(),
        k_block=128,
        tile=PAPER_TILE,
    )


def peers() -> list[Row]:
    dropped, mean = Policy(tail="none"), Policy(tail="mean")
    strips = Row("", "", "main", "sol", q_block=SOL_BLOCK, k_block=SOL_BLOCK, order="raster")
    return [
        replace(strips, name="strips", label="1-D strips of 64, row top-k, dropped", policy=dropped),
        replace(strips, name="sol", label="Sol-Attn recipe: strips of 64, row top-k, mean tail per query", policy=mean),
        replace(
            strips,
            name="peer_topk",
            label="comfy-kitchen sol_attn, top-k: mean tail per query block",
            kind="peer_topk",
            policy=mean,
        ),
        replace(
            strips,
            name="kitchen_no_gain",
            label="comfy-kitchen sol_attn, top-k, in our order (backend `kitchen`), no gain",
            kind="peer_topk",
            policy=mean,
            order="tile",
        ),
        replace(
            strips,
            name="kitchen",
            label="comfy-kitchen sol_attn, top-k, in our order with our tail gain (backend `kitchen`)",
            kind="peer_topk",
            policy=mean,
            order="tile",
            auto_gain=True,
        ),
        replace(strips, name="peer_tau", label="comfy-kitchen sol_attn, tau threshold", kind="peer_tau", policy=mean),
    ]


def ladder() -> list[Row]:
    """From the paper's method to ours, one ingredient after the other; a step that changes nothing is left out."""
    goal = ours()
    step = paper()
    steps: list[Row] = []

    def add(name: str, label: str, **changes: object) -> None:
        nonlocal step
        policy = {key: value for key, value in changes.items() if key in Policy.__dataclass_fields__}
        others = {key: value for key, value in changes.items() if key not in policy}
        changed = replace(step, policy=replace(step.policy, **policy), **others)  # type: ignore[arg-type]
        if changed.what_it_does() != step.what_it_does():
            step = replace(changed, name=f"ladder{len(steps) + 1}_{name}", label=label, group="ladder")
            steps.append(step)

    add(
        "budget",
        "paper + our selection budget, floor and own block",
        method=goal.policy.method,
        floor=goal.policy.floor,
        keep_own=goal.policy.keep_own,
        top_p=goal.policy.top_p,
    )
    add("mean", "... + mean tail", tail="mean")
    add("linear0", "... + linear tail, one matrix per head", tail="linear0")
    add(
        "tile3d",
        f"... + 3-D blocks of {goal.q_block}",
        tile=goal.tile,
        order=goal.order,
        q_block=goal.q_block,
        k_block=goal.q_block,
    )
    add("kblock", f"... + key blocks of {goal.k_block}", k_block=goal.k_block)
    add("tail", f"... + tail {goal.policy.tail}", tail=goal.policy.tail, auto_tail=goal.auto_tail)
    add("spread", "... + spread in the score", spread=goal.policy.spread)
    add("gain", "... + tail gain by the probe", auto_gain=goal.auto_gain)
    return steps


def tails_and_blocks() -> list[Row]:
    """Every tail with every block size, the rest as in our defaults."""
    goal = ours()
    rows = []
    for q_block, k_block in ((128, 128), (128, 64), (64, 64)):
        for tail in TAILS:
            rows.append(
                replace(
                    goal,
                    name=f"q{q_block}_k{k_block}_{tail}",
                    label=f"blocks {q_block}/{k_block}, tail {tail}",
                    group="tail and block",
                    policy=replace(goal.policy, tail=tail),
                    q_block=q_block,
                    k_block=k_block,
                    tile=None,
                    order="tile",
                    auto_tail=False,
                )
            )
    return rows


def orders() -> list[Row]:
    """Our defaults in other orders: strips, 2-D and 3-D tiles, Hilbert."""
    goal = ours()
    tiles: dict[int, tuple[Tile, ...]] = {
        128: ((1, 8, 16), (2, 8, 8), (4, 4, 8), (4, 8, 4), (8, 4, 4), (8, 2, 8)),
        64: ((1, 8, 8), (2, 4, 8), (4, 4, 4), (8, 2, 4), (8, 4, 2)),
    }
    large = max(goal.q_block, goal.k_block)
    rows = []
    for tile in tiles.get(large, ()):
        shape = "x".join(map(str, tile))
        rows.append(replace(goal, name=f"tile_{shape}", label=f"ours with tiles {shape}", tile=tile, order="tile"))
    for order in ("hilbert", "raster"):
        rows.append(replace(goal, name=f"order_{order}", label=f"ours in {order} order", tile=None, order=order))
    return [replace(row, group="order") for row in rows]


def candidates() -> list[Row]:
    """Other whole configurations that might be the defaults."""
    goal = ours()
    rows = []
    for q_block, k_block, tile in ((128, 64, (8, 4, 4)), (64, 64, (4, 4, 4)), (64, 64, (8, 4, 2))):
        for tail, method in (("linear0", "row"), ("linear1", "row"), ("linear0", "head")):
            shape = "x".join(map(str, tile))
            policy = replace(goal.policy, tail=tail, method=method, floor=0.5, spread=True)  # type: ignore[arg-type]
            rows.append(
                replace(
                    goal,
                    name=f"c{q_block}_{shape}_{tail}_{method}",
                    label=f"blocks {q_block}/{k_block}, tiles {shape}, tail {tail}, {method} budget",
                    group="candidate",
                    policy=policy,
                    q_block=q_block,
                    k_block=k_block,
                    tile=tile,
                    order="tile",
                    auto_tail=False,
                )
            )
    return rows


def selections() -> list[Row]:
    """Our defaults with another way to select."""
    goal = ours()

    def variant(name: str, label: str, **changes: object) -> Row:
        policy = replace(goal.policy, **changes)  # type: ignore[arg-type]
        return replace(goal, name=name, label=label, group="selection", policy=policy)

    rows = [variant(f"spread_{state}", f"ours, spread score {state}", spread=state == "on") for state in ("on", "off")]
    rows += [
        variant("method_row", "ours with row top-k", method="row"),
        variant("method_draft", "ours with the published threshold per head", method="draft"),
        variant("method_top_p", "ours with top-p (floor 0.5)", method="top_p", floor=0.5),
    ]
    rows += [
        variant(f"floor_{floor:g}", f"ours, head budget, floor {floor:g}", method="head", floor=floor)
        for floor in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    rows.append(replace(variant("gain_off", "ours without the tail gain"), auto_gain=False))
    rows.append(variant("own_off", "ours without keeping the own block", keep_own=False))
    for scores, how in (("cells_lse", "log-sum-exp"), ("cells_softmax", "softmax per query cell")):
        cells = replace(goal, name=scores, label=f"ours, scores from cells of 16 tokens, {how}", group="selection")
        rows.append(replace(cells, scores=scores))  # type: ignore[arg-type]
    probed = replace(goal, name="auto_tail", label="ours, tail by the error probe", auto_tail=True)
    rows.append(replace(probed, group="selection"))
    return rows


def oracles() -> list[Row]:
    """Selection by the true softmax mass of every block pair."""
    goal = ours()
    dropped = replace(goal.policy, tail="none")
    return [
        replace(
            paper(), name="paper_oracle", label="paper, blocks of true top mass", group="oracle", scores="true_mass"
        ),
        replace(goal, name="ours_oracle", label="ours, true top mass", group="oracle", scores="true_mass"),
        replace(
            goal,
            name="drop_oracle",
            label="ours dropped, true top mass",
            group="oracle",
            policy=dropped,
            scores="true_mass",
            auto_tail=False,
        ),
    ]


def all_rows() -> list[Row]:
    """Every row, main ones first."""
    return [
        *peers(),
        paper(),
        ours(),
        *ladder(),
        *tails_and_blocks(),
        *orders(),
        *candidates(),
        *selections(),
        *oracles(),
    ]


def distinct(rows: list[Row]) -> tuple[list[Row], dict[str, str]]:
    """Rows that do different things, and for each left-out twin the name of the row that does the same."""
    first: dict[Row, str] = {}
    kept, twins = [], {}
    for row in rows:
        does = row.what_it_does()
        if does in first:
            twins[row.name] = first[does]
        else:
            first[does] = row.name
            kept.append(row)
    return kept, twins
