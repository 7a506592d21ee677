"""How Δh grows along θ + αT, and how many directions it has.

Growth: if tuning moved the weights little enough, Δh is linear in them: at α = 2 twice as long as at α = 1, in the same
direction, and its words score the same. A cosine that falls says that the step was too long for that.

Rank: of every text one token is drawn, with several seeds, and a PCA of the Δh of one half is compared with the other
half: the share of the variance there that lies along the first components. Shams say how few directions any training
takes; random vectors of T's norms, how many a vector without any purpose has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probes.discovery.differences import Floats, Scores, Sums, add, chosen_of, largest, logits_of, on_one_scale, read_at
from probes.discovery.observing import CHOOSE, MEASURE, Seen
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.sides import ROUNDED, SHAM, TUNED, Model, Side
from tv.runtime.seeds import seed_of

#: How far along T, beside 1.
ALPHAS = (0.5, 2.0)
#: So many draws of the sham are scaled too.
SHAMS = 4
#: Seeds of the tokens that are drawn, one of every text.
SEEDS = 3
#: So many first components.
COMPONENTS = (1, 2, 4, 8, 16)


@dataclass
class _Growth:
    """At one kind of place and one α, over depths."""

    size: float  # ‖mean Δh‖ over the base's mean ‖h‖
    cosine: float  # of mean Δh with that at α = 1, where there is one
    score: float  # of the list at α = 1, mean


@discovery_part("difference_growth")
@dataclass
class DifferenceGrowth(Part):
    """Two tables and no words."""

    context: Context
    growth: dict[tuple[str, float], dict[str, list[_Growth]]] = field(default_factory=dict)
    drawn: list[dict[int, list[Tensor]]] = field(default_factory=list)  # by seed and half, of the side that is seen
    shares: dict[str, list[Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.depths = read_at(self.context.pair.architecture.n_layers)
        self.vocab = min(len(model.get_input_embeddings().weight) for model in self.context.pair.models)
        self._forget()

    def see(self, side: Side, seen: Seen) -> None:
        self.context.differences.see(side, seen)
        if not seen.in_null:
            return
        first = 0
        for item, half in zip(seen.encoded, seen.halves, strict=True):
            for seed in range(SEEDS):
                # The first token is left out where there are others: its states are of another size.
                n = max(len(item.ids) - 1, 1)
                at = first + len(item.ids) - n + seed_of(f"rank {seed} {item.prompt.id}") % n
                apart = seen.other.resid[self.depths, at] - seen.base.resid[self.depths, at]
                self.drawn[seed][half].append(apart.cpu())
            first += len(item.ids)

    def close(self, side: Side, model: Model) -> None:
        shares = [
            explained(torch.stack(by_half[CHOOSE], 1), torch.stack(by_half[MEASURE], 1))
            for by_half in self.drawn
            if all(by_half.values())
        ]
        if shares:
            self.shares.setdefault(side.name, []).append(np.stack(shares))
        if side.name == TUNED or (side.name == SHAM and side.draw < SHAMS):
            self._grow(side, model)
        self._forget()

    def _grow(self, side: Side, model: Model) -> None:
        whole = {place: sums for place, sums in self.context.differences.sums.items() if sums.in_both}
        self._note(side, 1.0, whole, whole)
        for alpha in ALPHAS:
            self._note(side, alpha, self._sums(model, alpha), whole)

    def _sums(self, model: Model, alpha: float) -> dict[str, Sums]:
        """At θ + αT; its model is gone with the return, so that no two of them are in memory."""
        scaled, sums = self.context.sides.scaled(model, alpha), dict[str, Sums]()
        for batch, in_null in self.context.texts.batches:
            if in_null:
                halves = tuple(self.context.texts.halves[item.prompt.id] for item in batch.encoded)
                both = self.context.sides.base(batch), scaled.read(batch)
                add(sums, Seen(*both, batch.encoded, halves, in_null), self.context.differences.bos)
        return sums

    def _note(self, side: Side, alpha: float, at: dict[str, Sums], whole: dict[str, Sums]) -> None:
        for place, one in whole.items():
            here, there = at[place].both(), one.both()
            moved = there.norm(dim=1) > 0  # below the first block that T moves, Δh has no direction
            ids, depths = chosen_of(self._scores(one, CHOOSE))
            found = _Growth(
                size=float((at[place].size() / one.usual)[1:].mean()),
                cosine=float(torch.cosine_similarity(here[moved], there[moved], dim=1).mean()),
                score=float(self._scores(at[place], MEASURE)[depths, ids].mean()),
            )
            self.growth.setdefault((place, alpha), {}).setdefault(side.name, []).append(found)

    def _scores(self, sums: Sums, half: int) -> Scores:
        reader, usual = self.context.sides.base_model.reader, sums.usual[self.depths]
        return on_one_scale(logits_of(reader, sums.mean(half)[self.depths], usual, self.vocab))

    def _forget(self) -> None:
        self.drawn = [{CHOOSE: [], MEASURE: []} for _ in range(SEEDS)]

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        rows = []
        for (place, alpha), by_side in sorted(self.growth.items()):
            (own,), shams = by_side[TUNED], by_side.get(SHAM, [])
            row = {"place": place, "alpha": alpha}
            for name in ("size", "cosine", "score"):
                row[name] = getattr(own, name)
                row[f"{name}_sham"] = max((getattr(one, name) for one in shams), default=np.nan)
            rows.append(row)
        yield "difference_growth", pd.DataFrame(rows)
        if TUNED in self.shares:
            yield "difference_rank", self._ranks()

    def _ranks(self) -> pd.DataFrame:
        (own,) = self.shares[TUNED]
        seed, depth, component = np.indices(own.shape)
        found = {
            "depth": np.array(self.depths)[depth.ravel()],
            "seed": seed.ravel(),
            "components": np.array(COMPONENTS)[component.ravel()],
            "share": own.ravel(),
        }
        for beside, side in (("sham", SHAM), ("random", "random"), ("floor", ROUNDED)):
            found[f"share_{beside}"] = largest(self.shares, side, own).ravel()
        return pd.DataFrame(found)


def explained(choose: Float[Tensor, "depth n d_model"], measure: Float[Tensor, "depth m d_model"]) -> Floats:
    """(depth, components): the share of the variance of one half along the first components of the other.

    Both are taken around the mean of the half that chooses.
    """
    mean = choose.mean(1, keepdim=True)
    _, _, directions = torch.linalg.svd(choose - mean, full_matrices=False)
    along = torch.einsum("lmd,lrd->lmr", measure - mean, directions).square().sum(1).cumsum(1)
    total = (measure - mean).square().sum((1, 2)).clamp(min=1e-30)
    kept = [min(n, along.shape[1]) - 1 for n in COMPONENTS]
    return (along[:, kept] / total[:, None]).double().numpy()
