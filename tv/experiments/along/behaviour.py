"""What the models between a base and the checkpoints of a training do on prompts: losses, metrics, favoured tokens."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tv.arithmetic.variants import Mover, of_one_form
from tv.checkpoints.live import load_model
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.own_tokenizer import encoder
from tv.checkpoints.vector import TuningVector
from tv.evaluation.interpolation import barrier_of, rise_of
from tv.experiments.along.places import Floats, Place, crossing
from tv.experiments.cells import Cells, identity
from tv.prompts.behaviour import batched, behaviour
from tv.prompts.encoding import Batch, positions
from tv.prompts.notes import prompt_notes
from tv.runtime.compute import Compute
from tv.stats.means import FEWEST, mean_interval
from tv.stats.resampling import ends, resample_means

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOKENS = 20  # that are followed
_LIKELY = 1e-3  # a token that is followed has this probability somewhere in the last checkpoint, at least


@dataclass
class Along:
    """The models on the prompts: every prompt's losses at every point, and what tokens they favour."""

    places: list[Place]
    domains: NDArray[np.str_]
    clusters: list[str]
    losses: dict[tuple[int, int, float], Floats]  # by (from, to, α); checkpoint i is (i, i, 0), and 0 the base
    metrics: dict[int, pd.DataFrame]  # of every checkpoint
    favoured: dict[int, Floats]  # mean log-probabilities of followed tokens: (prompts, tokens)
    names: list[str]
    gains: Floats  # of the followed tokens, where they were chosen
    tested: NDArray[np.bool_]  # the prompts on which tokens are measured
    alphas: tuple[float, ...]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        base: str | Path,
        vectors: Sequence[TuningVector],
        places: list[Place],
        rows: Sequence[Any],
        alphas: Sequence[float],
        batch_size: int,
        compute: Compute,
        cells: Cells,
    ) -> Along:
        tokenizer, notes = encoder(base, [], rows)
        marks = [str(open_checkpoint(base).fingerprint()["content"]), *(identity(vector) for vector in vectors)]
        text = hashlib.sha256(repr([(p.id, p.text, p.target, p.foil, p.domain) for p in rows]).encode()).hexdigest()
        model, own = of_one_form(load_model(base, device=compute.device), vectors)
        batches = batched(rows, model, tokenizer, batch_size)
        items = [item for batch in batches for item in batch.encoded]
        clusters = [item.prompt.cluster or item.prompt.id for item in items]
        domains = np.array([item.prompt.domain for item in items])
        k = len(places)
        lines = [(i, i + 1) for i in range(k)] + [(0, k)]
        points = [(i, i, 0.0) for i in range(k + 1)]
        points += [(a, b, float(alpha)) for a, b in lines for alpha in sorted(alphas)]
        losses: dict[tuple[int, int, float], Floats] = {}
        metrics: dict[int, pd.DataFrame] = {}
        tested = _halves(clusters)
        with Mover(model, own) as mover:

            def at(point: tuple[int, int, float]) -> None:
                first, second, alpha = point
                scales = {first: 1 - alpha, second: alpha} if first != second else {first: 1.0}
                mover.to({own[i - 1]: scale for i, scale in scales.items() if i})

            for n, point in enumerate(points):
                key = {"prompts": text, "points": [[marks[i] for i in point[:2]], point[2]], "batch": batch_size}
                held = cells.find(key)
                if held is None:
                    at(point)
                    held = cells.keep(key, pd.DataFrame(behaviour(model, batches)))
                losses[point] = held["loss"].to_numpy(np.float64)
                if point[0] == point[1]:
                    metrics[point[0]] = held
                compute.tell("behaviour", n + 1, len(points), f"{point[2]:g}")
            names, gains, favoured = _followed(model, batches, tokenizer, at, k, tested, cells, [text, *marks], compute)
        notes = [*notes, *prompt_notes(rows, tokenizer)]
        return cls(
            places, domains, clusters, losses, metrics, favoured, names, gains, tested, tuple(sorted(alphas)), notes
        )

    @property
    def steps(self) -> Floats:
        return np.array([0.0, *(place.step for place in self.places)])

    def _each_domain(self) -> Iterator[tuple[str, NDArray[np.bool_], list[str]]]:
        names = list(dict.fromkeys(self.domains))
        for name in ["all", *names] if len(names) > 1 else ["all"]:
            chosen = np.ones(len(self.domains), bool) if name == "all" else self.domains == name
            yield str(name), chosen, [c for c, use in zip(self.clusters, chosen, strict=True) if use]

    def behaviour(self, draws: int, seed: int) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Every metric at every checkpoint; and when the loss of each domain had gone half of its way."""
        rows, turned = [], []
        for domain, chosen, clusters in self._each_domain():
            for metric in self.metrics[0].columns:
                values = np.stack([self.metrics[i][metric].to_numpy(np.float64)[chosen] for i in self.metrics], 1)
                if np.isnan(values).all():
                    continue
                mean, change = mean_interval(values, clusters), mean_interval(values - values[:, :1], clusters)
                for i, name in enumerate(["base", *(place.name for place in self.places)]):
                    row = {"domain": domain, "metric": metric, "checkpoint": name, "step": self.steps[i]}
                    row |= {"value": mean.mean[i], "lo": mean.lo[i], "hi": mean.hi[i], "change": change.mean[i]}
                    rows.append(row | {"change_lo": change.lo[i], "change_hi": change.hi[i], "prompts": len(values)})
            losses = np.stack([self.losses[i, i, 0.0][chosen] for i in range(len(self.steps))], 1)
            turned.append(self._half_way("domain", domain, losses, clusters, draws, seed))
        return pd.DataFrame(rows), turned

    def _half_way(
        self, kind: str, what: str, values: Floats, clusters: list[str], draws: int, seed: int
    ) -> dict[str, Any]:
        """When the mean of (prompts, checkpoints) had gone half of its way from the base to the last checkpoint."""
        change = mean_interval(values[:, -1] - values[:, 0], clusters)
        row = {"kind": kind, "what": what, "step": math.nan, "lo": math.nan, "hi": math.nan}
        row |= {"change": float(change.mean), "change_lo": float(change.lo), "change_hi": float(change.hi)}
        if np.isnan(change.lo):
            return row | {"said": f"cannot tell: fewer than {FEWEST} prompts or clusters that differ"}
        if not (change.lo > 0 or change.hi < 0):
            return row | {"said": "cannot tell: no change beyond noise"}
        moved = values - values[:, :1]
        share = moved.mean(0) / moved[:, -1].mean()
        drawn = resample_means(moved, draws, seed, clusters)
        with np.errstate(invalid="ignore", divide="ignore"):
            halves = crossing(self.steps, drawn / drawn[:, -1:])
        lo, hi = ends(halves, len(set(clusters)))
        step = float(crossing(self.steps, share[None])[0])
        return row | {"step": step, "lo": float(lo), "hi": float(hi), "said": "turned"}

    def connectivity(self, draws: int, seed: int) -> pd.DataFrame:
        """The barrier on the straight line between neighbours, and from the base to the last."""
        names = ["base", *(place.name for place in self.places)]
        k = len(self.places)
        grid = np.array([0.0, *self.alphas, 1.0])
        rows = []
        for a, b in [*((i, i + 1) for i in range(k)), (0, k)]:
            line = [self.losses[a, a, 0.0], *(self.losses[a, b, x] for x in self.alphas), self.losses[b, b, 0.0]]
            for domain, chosen, clusters in self._each_domain():
                losses = np.stack(line, 1)[chosen]
                top, rise = (f(grid, losses, clusters, draws=draws, seed=seed) for f in (barrier_of, rise_of))
                row = {"from": names[a], "to": names[b], "domain": domain, "loss_from": losses[:, 0].mean()}
                row |= {"loss_to": losses[:, -1].mean(), "barrier": top.value, "lo": top.lo, "hi": top.hi}
                row |= {"alpha": top.alpha, "rise": rise.value, "rise_lo": rise.lo, "rise_hi": rise.hi}
                rows.append(row | {"prompts": len(losses), "clusters": len(set(clusters))})
        return pd.DataFrame(rows)

    def tokens(self, draws: int, seed: int) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
        """Followed tokens at every checkpoint, on prompts that they were not chosen on; and when each had turned."""
        clusters = [c for c, use in zip(self.clusters, self.tested, strict=True) if use]
        rows, turned = [], []
        for j, token in enumerate(self.names):
            values = np.stack([self.favoured[i][self.tested, j] for i in range(len(self.steps))], 1)
            gain = mean_interval(values - values[:, :1], clusters)
            for i, name in enumerate(["base", *(place.name for place in self.places)]):
                row = {"token": token, "checkpoint": name, "step": self.steps[i], "gain": gain.mean[i]}
                rows.append(row | {"lo": gain.lo[i], "hi": gain.hi[i], "gain_where_chosen": float(self.gains[j])})
            turned.append(self._half_way("token", token, values, clusters, draws, seed))
        return pd.DataFrame(rows), turned


def _followed(
    model: PreTrainedModel,
    batches: list[Batch],
    tokenizer: Any,
    at: Any,
    k: int,
    tested: NDArray[np.bool_],
    cells: Cells,
    marks: list[str],
    compute: Compute,
) -> tuple[list[str], Floats, dict[int, Floats]]:
    """The tokens that the last checkpoint favours most on half of the prompts, and all checkpoints' means of them."""
    key: dict[str, Any] = {"tokens": marks, "of": "chosen"}
    held = cells.find(key)
    if held is None:
        at((0, 0, 0.0))
        before, _ = mean_logp(model, batches)
        at((k, k, 0.0))
        after, likely = mean_logp(model, batches)
        gain = (after - before)[~tested].mean(0) if (~tested).any() else (after - before).mean(0)
        gain = torch.where(likely >= _LIKELY, gain, torch.tensor(-math.inf, dtype=gain.dtype))
        top = gain.topk(min(_TOKENS, len(gain)))
        kept = top.values > 0
        held = cells.keep(key, pd.DataFrame({"id": top.indices[kept].numpy(), "gain": top.values[kept].numpy()}))
    ids = torch.tensor(held["id"].to_numpy(np.int64))
    favoured: dict[int, Floats] = {}
    for i in range(k + 1):
        point = {"tokens": marks, "of": i, "ids": ids.tolist()}
        table = cells.find(point)
        if table is None:
            at((i, i, 0.0))
            table = cells.keep(point, pd.DataFrame(mean_logp(model, batches)[0][:, ids].numpy()).rename(columns=str))
        favoured[i] = table.to_numpy(np.float64)
        compute.tell("tokens", i + 1, k + 1, "")
    return [tokenizer.decode([one]) for one in ids.tolist()], held["gain"].to_numpy(np.float64), favoured


def mean_logp(model: PreTrainedModel, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """(prompts, vocabulary): the mean log-probability of every token over a prompt's places; and the largest anywhere.

    Places are those that predict the target, else the whole text's.
    """
    means, largest = [], None
    with torch.inference_mode():
        for batch in batches:
            inputs = {
                "input_ids": batch.input_ids.to(model.device),
                "attention_mask": batch.attention_mask.to(model.device),
            }
            logits = model(**inputs, use_cache=False).logits
            for row, item in zip(logits, batch.encoded, strict=True):
                places = item.scored if len(item.scored) else positions(item, "after template")
                logp = row[places.start : places.stop].float().log_softmax(-1)
                means.append(logp.mean(0).cpu())
                top = logp.amax(0).exp().cpu()
                largest = top if largest is None else torch.maximum(largest, top)
    assert largest is not None
    return torch.stack(means), largest


def _halves(clusters: list[str]) -> NDArray[np.bool_]:
    """Every other cluster: on these prompts tokens are measured, on the others they are chosen."""
    place = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    return np.array([place[name] % 2 == 1 for name in clusters])
