"""What the model in training does on a fixed set of prompts: behaviour, KL from the base, and gate flips.

The base is read once. Its log-probabilities lie on disk, its gate patterns as bits in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.capture.hooks.plan import Read, Seen, plan
from probes.capture.hooks.torch_backend import run_hooked
from probes.errors import RunError
from probes.measures.gates import compare_gates, gate_bits, words
from tv.architecture.anatomy import Architecture
from tv.architecture.resolve import resolve
from tv.prompts.behaviour import batched, metrics, token_nll
from tv.prompts.encoding import Batch, Encoded, Prompt, positions
from tv.prompts.metric import METRICS
from tv.stats.change import LEAST_FLOOR, said_of
from tv.stats.families import holm
from tv.stats.means import mean_interval
from tv.stats.proportions import mcnemar_p, share_change, share_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Floats = NDArray[np.float64]

#: Positions of a prompt at which KL and gates are read: of the target's tokens, else the last of the text.
PLACES = 8
#: Numbers of the base's log-probabilities that are kept at most: 1 GB. Longer sets keep fewer places a prompt.
_KEPT = 2**28


@dataclass(frozen=True)
class Pass:
    """One pass over the prompts."""

    values: dict[str, Floats]  # by metric, with `loss` and, against a base, `kl`: a value a prompt, NaN without one
    bits: dict[int, Tensor]  # by layer: the packed gate pattern of every place


@dataclass
class Prompted:
    """The prompts as the model reads them, and which places of them are compared."""

    prompts: list[Prompt]
    batches: list[Batch]
    architecture: Architecture
    vocabulary: int  # columns of the logits

    def __post_init__(self) -> None:
        self.encoded: list[Encoded] = [item for batch in self.batches for item in batch.encoded]
        each = max(1, min(PLACES, _KEPT // max(1, self.vocabulary * len(self.encoded))))
        self.places = [_places(item, each) for item in self.encoded]
        self.clusters = [item.prompt.cluster or item.prompt.id for item in self.encoded]
        self.names = np.array([item.prompt.domain for item in self.encoded])
        #: The prompt of every place.
        self.owner = np.repeat(np.arange(len(self.places)), [len(places) for places in self.places])
        self.reads: tuple[Read, ...] = plan(self.architecture, ("gate",)) if self.architecture.blocks else ()
        self.widths: dict[int, int] = {}

    @classmethod
    def of(
        cls, prompts: list[Prompt], plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, size: int
    ) -> Prompted:
        """Encoded for a model, in batches of a size. Raises PromptError for a prompt that it cannot take."""
        vocabulary = plain.get_output_embeddings().weight.shape[0]
        return cls(prompts, batched(prompts, plain, tokenizer, size), resolve(plain), vocabulary)

    def alone(self) -> list[Batch]:
        """The same, each prompt by itself: what padding and the batch's size round otherwise."""
        return [one for batch in self.batches for one in _singly(batch)]

    def seen(
        self,
        core: PreTrainedModel,
        base: NDArray[np.float32] | None = None,
        into: NDArray[np.float32] | None = None,
        given: Sequence[Batch] | None = None,
    ) -> Pass:
        """One pass: against the base's log-probabilities, or with the model's own written `into` an array."""
        values: dict[str, list[Floats]] = {}
        bits: dict[int, list[Tensor]] = {}
        done = first = 0
        for batch in self.batches if given is None else given:
            n = len(batch.encoded)
            places = self.places[done : done + n]
            rows = torch.tensor([i for i, of in enumerate(places) for _ in of], dtype=torch.long)
            at = torch.tensor([p for of in places for p in of], dtype=torch.long)

            def receive(read: Read, seen: Seen, rows: Tensor = rows, at: Tensor = at) -> None:
                for site in read.sites:
                    pattern = gate_bits(seen.at(site)[rows.to(seen.output.device), at.to(seen.output.device)])
                    self.widths[site.layer] = pattern.shape[-1]
                    bits.setdefault(site.layer, []).append(words(pattern).cpu())

            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            logits = run_hooked(core, self.reads, inputs, receive)
            read = {name: value.cpu().numpy() for name, value in metrics(logits, batch).items()}
            read["loss"] = _losses(logits, batch, read["target_nll_per_token"])
            here = logits[rows.to(logits.device), at.to(logits.device)].float().log_softmax(-1)
            span = slice(first, first + len(rows))
            if into is not None:
                into[span] = here.cpu().numpy()
            if base is not None:
                kl = _kl(torch.from_numpy(np.array(base[span])).to(here.device), here).cpu().double().numpy()
                read["kl"] = _by_prompt(kl, rows.numpy(), n)
            for name, value in read.items():
                values.setdefault(name, []).append(np.asarray(value, np.float64))
            done, first = done + n, first + len(rows)
        return Pass(
            {name: np.concatenate(parts) for name, parts in values.items()},
            {layer: torch.cat(parts) for layer, parts in bits.items()},
        )

    def domains(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """`all`, then each of several."""
        yield "all", np.ones(len(self.names), bool)
        if len(set(self.names)) > 1:
            for name in dict.fromkeys(self.names):
                yield str(name), self.names == name


class Base:
    """The base on the prompts, kept on disk from the first step on, and read again when a run resumes."""

    def __init__(self, directory: Path, prompted: Prompted) -> None:
        """Open what `keep` wrote. Raises RunError where it is of other prompts."""
        self.prompted = prompted
        said = json.loads((directory / "prompts.json").read_text(encoding="utf-8"))
        if said != _identity(prompted):
            raise RunError(
                f"{directory.parent}: was begun on other prompts, or with another tokenizer; give the same ones, or "
                "another directory"
            )
        self.logp: NDArray[np.float32] = np.load(directory / "logp.npy", mmap_mode="r")
        with np.load(directory / "base.npz") as held:
            self.values = {name[2:]: held[name] for name in held.files if name.startswith("v_")}
            self.floor = {name[2:]: held[name] for name in held.files if name.startswith("f_")}
            self.bits = {int(name[2:]): torch.from_numpy(held[name]) for name in held.files if name.startswith("b_")}
            self.flips = {int(name[2:]): float(held[name]) for name in held.files if name.startswith("x_")}

    @staticmethod
    def keep(directory: Path, prompted: Prompted, core: PreTrainedModel) -> None:
        """Read the base, as `core` computes it now, and once more as rounding changes it; write both."""
        n, rows = len(prompted.owner), prompted.vocabulary
        logp = np.lib.format.open_memmap(directory / "logp.npy", mode="w+", dtype=np.float32, shape=(n, rows))
        seen = prompted.seen(core, into=logp)
        logp.flush()
        other = rounded(prompted, core, logp)
        held: dict[str, Any] = {f"v_{name}": value for name, value in seen.values.items()}
        held |= {f"f_{name}": value for name, value in other.values.items()}
        held |= {f"b_{layer}": bits.numpy() for layer, bits in seen.bits.items()}
        for layer, bits in seen.bits.items():
            held[f"x_{layer}"] = float(compare_gates(bits, other.bits[layer], prompted.widths[layer]).flip_rate.mean())
        np.savez(directory / "base.npz", **held)
        (directory / "prompts.json").write_text(json.dumps(_identity(prompted)), encoding="utf-8")

    def behaviour(self, seen: Pass) -> list[dict[str, Any]]:
        """A row per domain and metric: the mean, its change from the base, and what may be said of that change."""
        rows: list[dict[str, Any]] = []
        for metric, values in seen.values.items():
            before = np.zeros_like(values) if metric == "kl" else self.values[metric]
            known = METRICS.get(metric)
            for domain, chosen in self.prompted.domains():
                use = chosen & ~np.isnan(values)
                if not use.any():
                    continue
                clusters = [name for name, one in zip(self.prompted.clusters, use, strict=True) if one]
                before_here, here = before[use], values[use]
                shift = (self.floor[metric] - (0 if metric == "kl" else self.values[metric]))[use]
                row: dict[str, Any] = {"domain": domain, "metric": metric, "base": float(before_here.mean())}
                row |= _estimates(metric, before_here, here, clusters)
                row |= {"floor": max(LEAST_FLOOR, abs(float(np.mean(shift)))), "prompts": int(use.sum())}
                rows.append(row | {"clusters": len(set(clusters)), "_matters": known.matters if known else 0.0})
        for metric in {row["metric"] for row in rows}:
            family = [row for row in rows if row["metric"] == metric]
            for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
                ends = row["change_lo"], row["change_hi"], float(p)
                row["said"] = said_of(row["change"], *ends, floor=row["floor"], matters=row.pop("_matters"))
        return rows

    def flip_rows(self, seen: Pass) -> list[dict[str, Any]]:
        """A row per layer and one of all: the share of gates that are not as in the base."""
        rows: list[dict[str, Any]] = []
        every: list[tuple[Floats, Floats, float]] = []
        for layer, bits in seen.bits.items():
            found = compare_gates(self.bits[layer], bits, self.prompted.widths[layer])
            n = len(self.prompted.encoded)
            flips, chance = (
                _by_prompt(x.double().numpy(), self.prompted.owner, n)
                for x in (found.flip_rate, found.chance_flip_rate)
            )
            every.append((flips, chance, self.flips[layer]))
            rows.append({"layer": layer} | self._rates(*every[-1]))
        if every:
            mean = [np.mean(np.stack(parts), 0) for parts in ([one[0] for one in every], [one[1] for one in every])]
            rows.insert(0, {"layer": -2} | self._rates(mean[0], mean[1], float(np.mean([one[2] for one in every]))))
        return rows

    def _rates(self, flips: Floats, chance: Floats, floor: float) -> dict[str, float]:
        mean = mean_interval(flips, self.prompted.clusters)
        return {
            "flip_rate": float(mean.mean),
            "lo": float(mean.lo),
            "hi": float(mean.hi),
            "chance_flip_rate": float(chance.mean()),
            "floor": floor,
        }


def rounded(prompted: Prompted, core: PreTrainedModel, logp: NDArray[np.float32]) -> Pass:
    """The same model with other rounding: a float32 one computes in bfloat16, any other each prompt by itself."""
    if core.dtype != torch.float32:
        return prompted.seen(core, base=logp, given=prompted.alone())
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(core.device.type, torch.bfloat16))
        return prompted.seen(core, base=logp)


def _places(item: Encoded, each: int) -> list[int]:
    """The places of a prompt: those that predict its target, else the last of its text, evenly where there are many."""
    scored = list(item.scored) or list(positions(item, "after template"))[-each:]
    keep = np.unique(np.linspace(0, len(scored) - 1, min(each, len(scored))).round().astype(int))
    return [scored[i] for i in keep]


def _singly(batch: Batch) -> list[Batch]:
    return [
        Batch((item,), batch.input_ids[i : i + 1, : len(item.ids)], batch.attention_mask[i : i + 1, : len(item.ids)])
        for i, item in enumerate(batch.encoded)
    ]


def _losses(logits: Tensor, batch: Batch, of_target: Floats) -> Floats:
    """Mean −log p of a token: of the target's, else of the text's."""
    losses = np.array(of_target, np.float64)
    for i, item in enumerate(batch.encoded):
        if not len(item.scored):
            places = positions(item, "after template")
            nll = token_nll(logits[i, : places.stop], batch.input_ids[i, : places.stop].to(logits.device))
            losses[i] = float(nll[max(places.start, 1) :].double().mean())
    return losses


def _kl(base: Tensor, tuned: Tensor) -> Tensor:
    """KL(base ‖ tuned) of log-probabilities; of two vocabularies the rows in common."""
    common = min(base.shape[-1], tuned.shape[-1])
    p, q = (x[..., :common].log_softmax(-1) for x in (base, tuned))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def _estimates(metric: str, before: Floats, after: Floats, clusters: list[str]) -> dict[str, float]:
    """The mean, its change, and p of no change; shares of prompts have intervals within [0, 1]."""
    if metric == "exact_match":
        share, change = share_interval(after, clusters), share_change(before, after, clusters)
        p = mcnemar_p(before, after, clusters)
    else:
        mean, moved = mean_interval(after, clusters), mean_interval(after - before, clusters)
        share, change = (tuple(map(float, (one.mean, one.lo, one.hi))) for one in (mean, moved))  # type: ignore[assignment]
        p = float(moved.p)
    names = ("value", "lo", "hi", "change", "change_lo", "change_hi", "p")
    return dict(zip(names, (*share, *change, p), strict=True))


def _by_prompt(values: Floats, owner: NDArray[np.int64], n: int) -> Floats:
    """The mean over the places of every prompt."""
    return np.bincount(owner, values, n) / np.maximum(np.bincount(owner, minlength=n), 1)


def _identity(prompted: Prompted) -> list[list[Any]]:
    return [[item.prompt.id, list(item.ids)] for item in prompted.encoded]
