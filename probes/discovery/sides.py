"""Who is compared with the base: the tuned model, the base in another precision, and controls in the place of T.

`random` and `shuffled` have T's norm in every parameter and nothing else of it. They say little of a vector that came
from training, which lies where activations are: any training moves predictions further than noise of its norm. So there
is a third, `sham`: the gradient of the base's own loss on some of the texts, each text with a random sign, so that it
teaches nothing. It has T's norm in every parameter too, times one factor by which it moves the predictions as far as T
does (mean KL). What the tuned model does and no sham does is not that it was tuned, but what it was tuned on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from probes.attribution.forwards import Swap, Variant, swapped
from probes.attribution.swaps import OnDemand, Swaps
from probes.attribution.units import WHOLE
from probes.capture.noise_floor import twin_of
from probes.capture.pair import Pair
from probes.discovery.gradients import gradients
from probes.discovery.reading import Reading, read, readers_of
from probes.discovery.work import affordable, together
from probes.measures.logit_lens import Reader
from probes.measures.losses import divergence, weighed
from tv.architecture.anatomy import Architecture
from tv.architecture.values import values_of
from tv.checkpoints.streamed import is_streamed, stored_values
from tv.prompts.encoding import Batch, Encoded, batches
from tv.runtime.common_rows import common_rows
from tv.runtime.resident import Pages, page_out, trim
from tv.runtime.seeds import seed_of
from tv.runtime.threads import side_by_side

TUNED, ROUNDED, SHAM = "tuned", "rounded", "sham"
#: Texts whose gradients make a sham, and on which its factor is found.
_TEXTS = 12
#: Of these, at least, however large the models are.
_FEWEST = 6
#: How near, as a factor, the KL of a trial comes to that of the tuned model; the sham itself comes nearer.
_NEAR = 1.15
#: So many factors are tried.
_TRIALS = 8
#: A KL below this is none, nats.
_LEAST = 1e-12


@dataclass(frozen=True)
class Side:
    """What is compared with the base: `tuned`, `rounded`, or a control's name and draw."""

    name: str
    draw: int = 0

    @property
    def is_null(self) -> bool:
        """Whether it is a draw of a null."""
        return self.name not in (TUNED, ROUNDED)


@dataclass
class Sides:
    """The base, and everything that is compared with it on some texts."""

    pair: Pair
    encoded: Sequence[Encoded]
    batch_size: int
    seed: int
    _kept: dict[int, tuple[Batch, Reading]] = field(default_factory=dict)  # of the base, by the batch's identity

    @property
    def _streams(self) -> bool:
        """Whether the models are in memory a block at a time."""
        return is_streamed(self.pair.base)

    @cached_property
    def _readers(self) -> tuple[Reader, Reader]:
        return readers_of(self.pair)

    @cached_property
    def _swaps(self) -> Swaps:
        return Swaps(self.pair, self.seed, dict)

    def base(self, batch: Batch, keep: bool = False) -> Reading:
        """The base on a batch; one that was to be kept is not read again."""
        if id(batch) in self._kept:
            return self._kept[id(batch)][1]
        found = read(self.pair.base, self.pair.architecture, self._readers[0], batch)
        if keep:
            self._kept[id(batch)] = batch, found
        return found

    @contextmanager
    def on(self, side: Side) -> Iterator[Model]:
        """A side's model, while the context lasts. The base stays as it is."""
        pair, (_, of_tuned) = self.pair, self._readers
        if side.name == TUNED:
            yield Model(pair.tuned, pair.architecture, of_tuned)
            self._rest()
        elif side.name == ROUNDED:
            with twin_of(pair) as (both, _):
                yield Model(both.tuned, pair.architecture, self._as_base(both.tuned))
        else:
            weights = self._weights(side)
            self._rest()
            with self._with(weights) as moved:
                yield moved

    def scaled(self, model: Model, alpha: float, only: str = "*") -> Model:
        """θ + α(θ′ − θ), α times as far as a side's weights; in the parameters of this glob, the others the base's."""
        moved, after = {}, values_of(model.live)
        for name, before in values_of(self.pair.base).items():
            if not fnmatchcase(name, only):
                continue
            moved[name] = before.detach().clone()
            old, new = common_rows(moved[name], after[name].detach().to(before.device))
            old += alpha * (new - old)
        live = beside(self.pair.base, moved)
        return Model(live, self.pair.architecture, self._as_base(live))

    @contextmanager
    def _with(self, weights: Mapping[str, Tensor]) -> Iterator[Model]:
        """The base with these weights in place of its own, while the context lasts."""
        with swapped(self._double.live, Swap(lambda: weights, 0)):
            yield self._double

    @cached_property
    def _double(self) -> Model:
        """A second model of the base's own weights: copying modules takes longer than setting what they hold."""
        base = self.pair.base
        if self._streams:
            live = base.weights.rounded()
        else:
            live = beside(base, {name: value.detach() for name, value in values_of(base).items()})
        return Model(live, self.pair.architecture, self._as_base(live))

    @property
    def base_model(self) -> Model:
        """The base."""
        return Model(self.pair.base, self.pair.architecture, self._readers[0])

    def _as_base(self, live: PreTrainedModel) -> Reader:
        form, flow = self.pair.norms[self.pair.architecture.final_norm], self.pair.flows[0]
        return Reader.of(live, self.pair.architecture, form, flow.logit_scale, flow.cap)

    def _weights(self, side: Side) -> Mapping[str, Tensor]:
        """The parameters of a control."""
        if side.name == SHAM:
            return self._moved_as_far(side.draw, self._factor)[0]
        drawn = self._swaps.of(Variant("base", (WHOLE,), side.name, side.draw)).tensors()
        if self._streams:
            return drawn
        after, pages = values_of(self.pair.tuned), Pages()

        def made(name: str) -> Tensor:
            value = drawn[name]
            pages.leave(after[name])
            return value

        return dict(zip(drawn, side_by_side(made, drawn), strict=True))

    def _rest(self) -> None:
        """The tuned model is not needed for a while: three models in memory are one too many."""
        if self._streams:
            self.pair.tuned.weights.rest()
        else:
            page_out(values_of(self.pair.tuned).values())
        trim()

    def sham_step(self, draw: int) -> dict[str, Tensor]:
        """The gradient, at T's norm in every parameter that T moves."""
        sizes = self._sizes  # before there is a third model
        generator = torch.Generator().manual_seed(seed_of(f"sham {self.seed} {draw}"))
        order = torch.randperm(len(self.encoded), generator=generator)[: self._n_texts].tolist()
        signs = torch.randint(0, 2, (len(order),), generator=generator) * 2.0 - 1.0
        chosen = [self.encoded[i] for i in order]
        by_id = {item.prompt.id: sign for item, sign in zip(chosen, signs.tolist(), strict=True)}
        # All at once where that is not too much: every further pass adds to all gradients.
        size = 2 * together(len(chosen), max(len(item.ids) for item in chosen), self.pair.architecture.vocab_size)
        some = batches(chosen, size, self.pair.pad_id)
        step = gradients(self.pair.base, self.pair.architecture, some, partial(_signed_loss, by_id))
        for name, gradient in step.items():
            gradient *= sizes[name] / max(float(torch.linalg.vector_norm(gradient)), 1e-30)
        return step

    @cached_property
    def _sizes(self) -> dict[str, float]:
        """‖T‖ of every parameter."""
        after, pages, sizes = stored_values(self.pair.tuned), Pages(), dict[str, float]()
        for name, before in stored_values(self.pair.base).items():
            own = after[name].detach()
            old, new = common_rows(before.detach(), own.to(before.device))
            sizes[name] = float(torch.linalg.vector_norm(new - old, dtype=torch.float64))
            if not self._streams:
                pages.leave(own)
        return sizes

    @cached_property
    def _factor(self) -> float:
        """That of the first sham; others are near."""
        return self._moved_as_far(0, 0.05)[1]

    def _moved_as_far(self, draw: int, factor: float) -> tuple[Mapping[str, Tensor], float]:
        """The base's weights moved so that predictions move as far as under T, on a few texts, as near as trials come.

        KL grows as the square of a small step and more slowly than that of a large one: between two near steps it is
        taken for the square. The weights are made where the gradient lies: a second copy of them takes no memory.

        Args:
            draw: The sham.
            factor: The first that is tried.

        Returns:
            The weights, and the factor of their step.
        """
        wanted = self._wanted  # before there is a third model
        step, at = self.sham_step(draw), 0.0
        low, high = 0.0, float("inf")
        tried: dict[float, float] = {}
        for _ in range(_TRIALS):
            moved = self._moved(step, at, factor)
            at, ratio = factor, self._kl(moved) / wanted
            guess = factor / math.sqrt(ratio)
            if abs(math.log(ratio)) < math.log(_NEAR):
                break
            tried[factor] = abs(math.log(ratio))
            low, high = (factor, high) if ratio < 1 else (low, factor)
            factor = guess if low < guess < high else (low + high) / 2
        else:
            guess = min(tried, key=lambda one: tried[one])
        return self._moved(step, at, guess), guess

    def _moved(self, step: dict[str, Tensor], at: float, to: float) -> Mapping[str, Tensor]:
        """The base, moved by a step times a factor: in place, from another factor; at 0 `step` is the step alone.

        Of a model that is in memory a block at a time the step stays one, and weights are made where they are read.
        """
        before = stored_values(self.pair.base)
        if self._streams:
            return OnDemand(step, lambda name: torch.add(before[name].detach(), step[name], alpha=to))
        for name, value in step.items():
            own = before[name].detach()
            if at:
                torch.lerp(own, value, to / at, out=value)
            else:
                torch.add(own, value, alpha=to, out=value)
        return step

    @cached_property
    def _n_texts(self) -> int:
        """Texts that make a sham. One takes three passes for its gradient and some for its factor, and there are 20."""
        mean = sum(len(item.ids) for item in self.encoded) / len(self.encoded)
        return min(_TEXTS, affordable(n_weights(self.pair.base), 20 * 6 * mean, _FEWEST))

    @cached_property
    def _few(self) -> Batch:
        few = sorted(self.encoded, key=lambda item: seed_of(f"sham {item.prompt.id}"))[: self._n_texts]
        return batches(few, len(few), self.pair.pad_id)[0]

    @cached_property
    def _plain(self) -> Tensor:
        return self.base(self._few).logits

    @cached_property
    def _wanted(self) -> float:
        with self.on(Side(TUNED)) as tuned:
            return max(_mean_kl(self._plain, tuned.read(self._few).logits), _LEAST)

    def _kl(self, weights: Mapping[str, Tensor]) -> float:
        with self._with(weights) as moved:
            return max(_mean_kl(self._plain, moved.read(self._few).logits), _LEAST)


@dataclass(frozen=True)
class Model:
    """One side's model, and how it is read."""

    live: PreTrainedModel
    architecture: Architecture
    reader: Reader

    def read(self, batch: Batch) -> Reading:
        """The model on a batch."""
        return read(self.live, self.architecture, self.reader, batch)


def n_weights(model: PreTrainedModel) -> int:
    """The numbers in a model's parameters."""
    return sum(value.numel() for value in values_of(model).values())


def beside(model: PreTrainedModel, values: Mapping[str, Tensor]) -> PreTrainedModel:
    """A copy of a model with these parameters in place of its own; it shares all others with it."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for name, value in values.items():
        path, _, own = name.rpartition(".")
        before = getattr(model.get_submodule(path), own)
        shared[id(before)] = nn.Parameter(value, requires_grad=False) if isinstance(before, nn.Parameter) else value
    return copy.deepcopy(model, shared)


def kl_at_each(base: Tensor, other: Tensor) -> Tensor:
    """KL(base ‖ other) of the next token at every one of n tokens, nats."""
    return divergence(base, other, weighed(base), weighed(other))


def _mean_kl(base: Tensor, other: Tensor) -> float:
    return float(kl_at_each(base, other).mean())


def _signed_loss(signs: Mapping[str, float], batch: Batch, logits: Tensor) -> Tensor:
    logits = logits[:, :-1].float()
    wanted = torch.where(batch.attention_mask[:, 1:].bool(), batch.input_ids[:, 1:], -100).to(logits.device)
    losses = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape).sum(1)
    own = torch.tensor([signs[item.prompt.id] for item in batch.encoded], device=losses.device)
    return (losses * own).sum()
