"""Which directions Δh has over texts, what they read as and where each is largest; and how alike states stay.

Components of Δh at some tokens of every text, at every depth, found on one half of the texts and measured on the other:

- `pca`: the leading directions around the mean of the half that chooses, each with the sign of its longer tail.
- `nmf`: directions whose sums make up Δh itself, with loadings that are never below 0: what is added at some places.

Read through the base's lens, a word's score is taken at the depth and component where it is largest, as
`difference_lens` does; the other half measures the same component, fitted to its own Δh. Of every score counts what no
sham has (`probes.discovery.surprise`). `difference_rank` of the part `difference_growth` says how many directions Δh
has; here is which ones.

CKA and cosine hold the states of both models against each other, beside what controls do. They say how far tuning went
and never that it taught anything: any gradient that moves predictions as far moves states too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.directions.similarity import cka, likenesses, shuffled_cka
from probes.discovery.components import Components, nmf, pca
from probes.discovery.differences import (
    GROUPS,
    Floats,
    jackknifed,
    largest,
    logits_of,
    on_one_scale,
    read_at,
    standardised,
)
from probes.discovery.drawn import Drawn, Place, largest_places, places
from probes.discovery.factors import Rows
from probes.discovery.observing import CHOOSE, MEASURE, Seen, cluster_of, group_of
from probes.discovery.part import Context, Part, discovery_part
from probes.discovery.sides import ROUNDED, SHAM, TUNED, Model, Side
from probes.discovery.surprise import Surprises
from tv.runtime.seeds import seed_of
from tv.stats.means import mean_interval

#: Components of every depth, and tokens of all texts that they are found and measured on.
COMPONENTS, TOKENS = 4, 512
METHODS: Mapping[str, Callable[[Rows, int], Components]] = {"pca": pca, "nmf": nmf}
#: Words and places of every component in the tables.
SHOWN = 5
#: Of ‖h‖: what is smaller is how float32 rounds, and has no components.
_LEAST = 1e-6
#: CKA has one token of each text, and is a mean over so many choices of it; and this many draws with shuffled texts.
CHOICES, SHUFFLED = 3, 99
_CONTROLS = (("sham", SHAM), ("random", "random"), ("floor", ROUNDED))


@dataclass
class _Side:
    """What is seen of a side, at tokens that are drawn; the first axis are depths."""

    apart: list[Rows] = field(default_factory=list)
    half: list[Tensor] = field(default_factory=list)
    group: list[Tensor] = field(default_factory=list)
    at: list[Place] = field(default_factory=list)
    states: list[Float[Tensor, "choices depth texts d_model"]] = field(default_factory=list)
    cosines: list[Float[Tensor, "texts depth"]] = field(default_factory=list)
    moved: list[Float[Tensor, "depth n"]] = field(default_factory=list)  # ‖Δh‖/‖h‖ of all tokens


@discovery_part("activation_shifts")
@dataclass
class ActivationShifts(Part):
    """Readings `pca` and `nmf`, and tables of components, of CKA and cosine, and of every token."""

    streams: ClassVar[bool] = True
    context: Context
    scores: Surprises = field(default_factory=lambda: Surprises("activation_shifts"))
    seen: _Side = field(default_factory=_Side)  # the side that is seen
    base: _Side = field(default_factory=_Side)  # the base's states alone
    size: list[Tensor] = field(default_factory=list)  # the base's ‖h‖ at drawn tokens, (depth, n)
    clusters: list[str] = field(default_factory=list)  # of every text
    groups: list[int] = field(default_factory=list)
    every: list[Place] = field(default_factory=list)  # every token
    shares: dict[str, dict[str, list[Floats]]] = field(default_factory=dict)  # by method and side's name
    interval: dict[str, tuple[Floats, Floats, Floats]] = field(default_factory=dict)  # of the tuned model's
    varies: dict[str, Bool[Tensor, " depth"]] = field(
        default_factory=dict
    )  # by method, where the tuned model's Δh does
    alike: dict[str, dict[str, list[Floats]]] = field(default_factory=dict)  # −CKA and −cosine, by side's name
    far: dict[str, list[Floats]] = field(default_factory=dict)  # by side's name, ‖Δh‖/‖h‖ of every token
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # of the tuned model

    def __post_init__(self) -> None:
        pair, texts = self.context.pair, self.context.texts
        self.depths = read_at(pair.architecture.n_layers)
        self.vocab = min(len(model.get_input_embeddings().weight) for model in pair.models)
        self.drawn = Drawn.of(texts.null, TOKENS, self.context.seed)

    def see(self, side: Side, seen: Seen) -> None:
        if not seen.in_null:
            return
        own, rows = self.seen, self.drawn.rows(seen)
        base, other = seen.base.resid[self.depths].cpu(), seen.other.resid[self.depths].cpu()
        apart = other - base
        own.apart.append(apart[:, rows])
        size = base.norm(dim=2).clamp(min=1e-30)
        own.moved.append(apart.norm(dim=2) / size)
        cosine = torch.cosine_similarity(base, other, dim=2)
        behind = [(seen.text == i) & ((seen.pos > 0) | (len(item.ids) == 1)) for i, item in enumerate(seen.encoded)]
        own.cosines.append(torch.stack([cosine[:, of].mean(1) for of in behind]))
        own.states.append(other[:, self._choices(seen)].movedim(1, 0))
        own.half.append(seen.half[rows])
        if side.name == TUNED:
            group = torch.tensor([group_of(item, GROUPS) for item in seen.encoded])
            own.group.append(group[seen.text][rows])
            own.at += places(seen, rows)
            self.base.states.append(base[:, self._choices(seen)].movedim(1, 0))
            self.size.append(size[:, rows])
            self.clusters += map(cluster_of, seen.encoded)
            self.groups += group.tolist()
            self.every += places(seen, torch.arange(len(seen.pos)))

    def _choices(self, seen: Seen) -> Tensor:
        """(choices, texts): which tokens of a batch stand for their texts."""
        firsts = torch.tensor([0, *(len(item.ids) for item in seen.encoded)]).cumsum(0)
        chosen = [self.drawn.positions[item.prompt.id] for item in seen.encoded]
        return torch.tensor(
            [
                [int(first) + own[i % len(own)] for first, own in zip(firsts, chosen, strict=False)]
                for i in range(CHOICES)
            ]
        )

    def close(self, side: Side, model: Model) -> None:
        own, self.seen = self.seen, _Side()
        apart, half = torch.cat(own.apart, 1), torch.cat(own.half)
        choose, measure = apart[:, half == CHOOSE], apart[:, half == MEASURE]
        if min(choose.shape[1], measure.shape[1]) > COMPONENTS:
            group = torch.cat(own.group)[half == MEASURE] if side.name == TUNED else None
            for method, find in METHODS.items():
                found = find(choose, COMPONENTS)
                shares = found.shares(measure).double().numpy()
                self.shares.setdefault(method, {}).setdefault(side.name, []).append(shares)
                self._read(method, side, found, choose, measure, group)
                if group is not None:
                    without = [found.shares(rest).double().numpy() for rest in _without(measure, group)]
                    self.interval[method] = jackknifed(shares, without)
                    size = (measure - found.mean).square().sum(2).mean(1).sqrt()
                    self.varies[method] = size > _LEAST * torch.cat(self.size, 1).mean(1)
                    self._show(method, found, apart, own.at)
        self._compare(side, own)
        self.far.setdefault(side.name, []).append(torch.cat(own.moved, 1).numpy())

    def _read(
        self, method: str, side: Side, found: Components, choose: Rows, measure: Rows, group: Tensor | None
    ) -> None:
        """A side's words, on both halves."""
        chosen, which = self._scores(found.seen_in(choose)).max(0)

        def there(rows: Rows) -> Tensor:
            return self._scores(found.seen_in(rows)).gather(0, which[None])[0]

        self.scores.put(method, side, chosen, there(measure))
        if group is not None:
            self.scores.put_without(method, [there(rest) for rest in _without(measure, group)])

    def _logits(self, vectors: Float[Tensor, "depth k d_model"]) -> Float[Tensor, "depth_k vocab"]:
        usual = torch.cat(self.size, 1).mean(1)[:, None].expand(vectors.shape[:2])
        return logits_of(self.context.sides.base_model.reader, vectors.flatten(0, 1), usual.flatten(), self.vocab)

    def _scores(self, vectors: Float[Tensor, "depth k d_model"]) -> Float[Tensor, "depth_k vocab"]:
        return on_one_scale(self._logits(vectors))

    def _show(self, method: str, found: Components, apart: Rows, at: list[Place]) -> None:
        """The tuned model's components: their words, and the places where they are largest."""
        tokenizer, usual = self.context.pair.tokenizer, torch.cat(self.size, 1)
        z = standardised(self._logits(found.seen_in(apart))).unflatten(0, (len(self.depths), COMPONENTS))
        loads = found.loads(apart) / usual[..., None]
        words, where = list[dict[str, object]](), list[dict[str, object]]()
        for i in self.varies[method].nonzero()[:, 0].tolist():
            key, own, of = {"depth": self.depths[i], "method": method}, z[i], loads[i]
            where += [key | row for row in largest_places(of, at, SHOWN, tokenizer)]
            best = own.topk(min(SHOWN, self.vocab))
            words += [
                key
                | {
                    "component": component,
                    "rank": rank,
                    "token_id": token,
                    "token": tokenizer.decode([token]),
                    "z": value,
                }
                for component, (values, ids) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
                for rank, (value, token) in enumerate(zip(values, ids, strict=True))
            ]
        for table, rows in (("component_words", words), ("component_places", where)):
            before = self.tables.get(table)
            self.tables[table] = pd.concat([before, pd.DataFrame(rows)], ignore_index=True)

    def _compare(self, side: Side, own: _Side) -> None:
        """CKA and cosine of a side's states with the base's. Kept with the sign turned: what is least is beside."""
        cosines = torch.cat(own.cosines).double().numpy()
        found = {"cosine": -cosines.mean(0)}
        if len(self.clusters) > 3:
            one, other = (likenesses(torch.cat(of.states, 2)) for of in (self.base, own))
            found["cka"] = -_mean(cka(one, other))
        for name, values in found.items():
            self.alike.setdefault(name, {}).setdefault(side.name, []).append(values)
        if side.name != TUNED:
            return
        rows: dict[str, object] = {"depth": self.depths}
        mean, lo, hi, *_ = mean_interval(cosines, self.clusters)
        rows |= {"cosine": mean, "cosine_lo": lo, "cosine_hi": np.minimum(hi, 1)}
        if "cka" in found:
            groups, states = torch.tensor(self.groups), [torch.cat(of.states, 2) for of in (self.base, own)]
            left = [groups != group for group in sorted(set(self.groups)) if int((groups != group).sum()) > 3]
            without = [_mean(cka(*(likenesses(of[:, :, rest]) for of in states))) for rest in left]
            value, lo, hi = jackknifed(-found["cka"], without)
            generator = torch.Generator().manual_seed(seed_of(f"cka {self.context.seed}"))
            shuffled = shuffled_cka(one, other, SHUFFLED, generator).mean(1)
            rows |= {"cka": value, "cka_lo": lo, "cka_hi": np.minimum(hi, 1)}
            rows["cka_shuffled"] = shuffled.quantile(0.95, 0).numpy()
        self.tables["activation_cka"] = pd.DataFrame(rows)

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        if self.shares:
            lists, intervals = self.scores.lists()
            yield "discovered_words", lists.rows(self.context.pair.tokenizer, intervals)
            yield "activation_components", self._components()
        alike = self.tables.pop("activation_cka")
        moved = self.far[TUNED][0].any(1)
        for name, by_side in self.alike.items():
            for beside, side in _CONTROLS:
                alike[f"{name}_{beside}"] = -largest(by_side, side, by_side[TUNED][0])
        alike.loc[~moved, alike.columns != "depth"] = np.nan
        yield "activation_cka", alike
        yield from self.tables.items()
        yield "activation_map", self._map()

    def _components(self) -> pd.DataFrame:
        parts = []
        for method, by_side in self.shares.items():
            value, lo, hi = self.interval[method]
            depth, component = np.indices(value.shape)
            found: dict[str, object] = {
                "depth": np.array(self.depths)[depth.ravel()],
                "method": method,
                "component": component.ravel(),
            }
            found |= {name: of.ravel() for name, of in (("share", value), ("lo", lo), ("hi", hi))}
            for beside, side in _CONTROLS:
                found[f"share_{beside}"] = largest(by_side, side, value).ravel()
            parts.append(pd.DataFrame(found)[np.repeat(self.varies[method].numpy(), COMPONENTS)])
        return pd.concat(parts, ignore_index=True)

    def _map(self) -> pd.DataFrame:
        (own,) = self.far[TUNED]
        depth, token = np.indices(own.shape)
        decode = self.context.pair.tokenizer.decode
        rows = pd.DataFrame([vars(place) | {"token": decode([place.token_id])} for place in self.every])
        rows = rows.iloc[token.ravel()].reset_index(drop=True)
        rows["depth"], rows["size"] = np.array(self.depths)[depth.ravel()], own.ravel()
        for beside, side in _CONTROLS:
            rows[f"size_{beside}"] = largest(self.far, side, own).ravel()
        return rows


def _without(rows: Rows, group: Tensor) -> Iterator[Rows]:
    """The rows without one group of texts, for every group."""
    for one in group.unique():
        rest = rows[:, group != one]
        if rest.shape[1] > COMPONENTS:
            yield rest


def _mean(values: Float[Tensor, "choices depth"]) -> Floats:
    return np.asarray(values.mean(0).double().numpy())
