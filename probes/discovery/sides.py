"""Who is held against the base: the tuned model, the base in another precision, and controls in the place of T.

`random` and `shuffled` have T's norm in every parameter and nothing else of it. They say little of a vector that came
from training, which lies where activations are: any training moves predictions further than noise of its norm. So there
is a third, `sham`: the gradient of the base's own loss on some of the texts, each text with a random sign, so that it
teaches nothing. It has T's norm in every parameter too, times one factor by which it moves the predictions as far as T
does (mean KL). What the tuned model does and no sham does is not that it was tuned, but what it was tuned on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from probes.attribution.forwards import Swap, Variant, frozen, swapped
from probes.attribution.swaps import Swaps
from probes.attribution.units import WHOLE
from probes.capture.noise_floor import twin_of
from probes.capture.pair import Pair
from probes.discovery.reading import Reading, read, readers_of
from probes.errors import RunError
from probes.measures.logit_lens import Reader
from probes.measures.losses import divergence, weighed
from tv.architecture.values import values_of
from tv.prompts.encoding import Batch, Encoded, batches
from tv.runtime.common_rows import common_rows
from tv.runtime.seeds import seed_of

TUNED, ROUNDED, SHAM = "tuned", "rounded", "sham"
#: Texts whose gradients make a sham, and on which its factor is found.
_TEXTS = 12
#: How near, as a factor, the KL of a sham comes to that of the tuned model.
_NEAR = 1.15


@dataclass(frozen=True)
class Side:
    """What is held against the base: `tuned`, `rounded`, or a control's name and draw."""

    name: str
    draw: int = 0

    @property
    def is_null(self) -> bool:
        """Whether it is a draw of a null."""
        return self.name not in (TUNED, ROUNDED)


@dataclass
class Sides:
    """The base, and everything that is held against it on some texts."""

    pair: Pair
    encoded: Sequence[Encoded]
    batch_size: int
    seed: int
    _factors: dict[int, float] = field(default_factory=dict)

    @cached_property
    def _readers(self) -> tuple[Reader, Reader]:
        return readers_of(self.pair)

    @cached_property
    def _swaps(self) -> Swaps:
        return Swaps(self.pair, self.seed, dict)

    def base(self, batch: Batch) -> Reading:
        """The base on a batch."""
        return read(self.pair.base, self.pair.architecture, self._readers[0], batch)

    @contextmanager
    def on(self, side: Side) -> Iterator[Model]:
        """A side's model, while the context lasts. The base is not itself then, unless the side is `tuned`."""
        pair, (of_base, of_tuned) = self.pair, self._readers
        if side.name == TUNED:
            yield Model(pair.tuned, pair, of_tuned)
        elif side.name == ROUNDED:
            with twin_of(pair) as (both, _):
                form, flow = pair.norms[pair.architecture.final_norm], pair.flows[0]
                reader = Reader.of(both.tuned, pair.architecture, form, flow.logit_scale, flow.cap)
                yield Model(both.tuned, pair, reader)
        else:
            with swapped(pair.base, self._swap(side)):
                yield Model(pair.base, pair, of_base)

    def _swap(self, side: Side) -> Swap:
        if side.name != SHAM:
            return self._swaps.of(Variant("base", (WHOLE,), side.name, side.draw))
        step = self._sham(side.draw)
        return Swap(lambda: self._moved(step, self._factor(side.draw, step)), first=-1)

    def _sham(self, draw: int) -> dict[str, Tensor]:
        """The gradient, at T's norm in every parameter that T moves."""
        generator = torch.Generator().manual_seed(seed_of(f"sham {self.seed} {draw}"))
        order = torch.randperm(len(self.encoded), generator=generator)[:_TEXTS].tolist()
        signs = torch.randint(0, 2, (len(order),), generator=generator) * 2.0 - 1.0
        chosen = [self.encoded[i] for i in order]
        base, before, after = self.pair.base, values_of(self.pair.base), values_of(self.pair.tuned)
        leaves = {name: value for name, value in before.items() if value.is_floating_point()}
        by_id = {item.prompt.id: sign for item, sign in zip(chosen, signs.tolist(), strict=True)}
        with frozen(base):
            try:
                for value in leaves.values():
                    value.requires_grad_(True)
                for batch in batches(chosen, self.batch_size, self.pair.pad_id):
                    _signed_loss(base, batch, by_id).backward()
                gradients = {name: value.grad for name, value in leaves.items() if value.grad is not None}
            finally:
                for value in leaves.values():
                    value.grad = None
                    value.requires_grad_(False)
        for name, gradient in gradients.items():
            old, new = common_rows(before[name].detach(), after[name].detach().to(gradient.device))
            size = torch.linalg.vector_norm((new - old).double())
            gradient *= float(size) / max(float(torch.linalg.vector_norm(gradient)), 1e-30)
        return gradients

    def _moved(self, step: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        before = values_of(self.pair.base)
        return {name: before[name].detach() + factor * of for name, of in step.items()}

    def _factor(self, draw: int, step: Mapping[str, Tensor]) -> float:
        """By bisection of the logarithm, on a few texts. Where nothing moves them as far, the nearest that was tried."""
        if draw not in self._factors:
            tried = {factor: self._kl(step, factor) for factor in (0.1,)}
            low, high = 1e-4, 1e2
            for _ in range(12):
                factor, kl = min(tried.items(), key=lambda item: abs(_log(item[1] / self._wanted)))
                if max(kl / self._wanted, self._wanted / kl) < _NEAR:
                    break
                last, kl = list(tried.items())[-1]
                low, high = (max(low, last), high) if kl < self._wanted else (low, min(high, last))
                guess = last * float((self._wanted / kl) ** 0.5)  # KL grows as the square of a small step
                tried[guess if low < guess < high else (low * high) ** 0.5] = 0.0
                last = list(tried)[-1]
                tried[last] = self._kl(step, last)
            self._factors[draw] = min(tried.items(), key=lambda item: abs(_log(item[1] / self._wanted)))[0]
        return self._factors[draw]

    @cached_property
    def _few(self) -> Batch:
        few = sorted(self.encoded, key=lambda item: seed_of(f"sham {item.prompt.id}"))[:_TEXTS]
        return batches(few, len(few), -1 if self.pair.pad_id < 0 else self.pair.pad_id)[0]

    @cached_property
    def _plain(self) -> Tensor:
        return self.base(self._few).logits

    @cached_property
    def _wanted(self) -> float:
        tuned = read(self.pair.tuned, self.pair.architecture, self._readers[1], self._few).logits
        return max(_mean_kl(self._plain, tuned), 1e-9)

    def _kl(self, step: Mapping[str, Tensor], factor: float) -> float:
        plain = self._plain
        with swapped(self.pair.base, Swap(lambda: self._moved(step, factor), first=-1)):
            return max(_mean_kl(plain, self.base(self._few).logits), 1e-12)


@dataclass(frozen=True)
class Model:
    """One side's model, and how it is read."""

    live: PreTrainedModel
    pair: Pair
    reader: Reader

    def read(self, batch: Batch) -> Reading:
        """The model on a batch."""
        return read(self.live, self.pair.architecture, self.reader, batch)


def require_gradients(pair: Pair) -> None:
    """Raise RunError where a sham cannot be made: half precision has no gradients worth the name."""
    if pair.base.dtype != torch.float32:
        raise RunError("discover: differences of logits are smaller than half precision rounds; leave out --dtype")


def kl_at_each(base: Tensor, other: Tensor) -> Tensor:
    """KL(base ‖ other) of the next token at every one of n tokens, nats."""
    return divergence(base, other, weighed(base), weighed(other))


def _mean_kl(base: Tensor, other: Tensor) -> float:
    return float(kl_at_each(base, other).mean())


def _signed_loss(model: PreTrainedModel, batch: Batch, signs: Mapping[str, float]) -> Tensor:
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    wanted = torch.where(mask[:, 1:].bool(), ids[:, 1:], -100)
    losses = cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)
    own = torch.tensor([signs[item.prompt.id] for item in batch.encoded], device=losses.device)
    return (losses * own).sum()


def _log(value: float) -> float:
    return float(torch.tensor(value).log())
