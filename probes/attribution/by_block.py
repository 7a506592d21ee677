"""The integrand of `path` for a pair that is read a layer at a time: forward, then backward, block by block.

On the way forward what enters each block is kept; on the way back each block runs again from there, with a gradient to
its input. So one sweep each way reads every layer of both models once, for all nodes and prompts that go together, and
in memory are one layer of both models (and their embedding, where layers are small beside it), that layer at θ(α), and
what it makes of one batch. What is kept waits in memory up to a bound, and beyond it in files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from probes.attribution.forwards import Swap, swapped
from probes.attribution.integrand import Integrand, as_far_as_read
from probes.attribution.metric import Metric, positions_read, unembedding
from probes.attribution.parts import Parts
from probes.attribution.shares import Shares
from probes.attribution.swaps import OnDemand
from probes.attribution.waiting import FILED, Waiting
from probes.capture.pair import Pair
from probes.errors import RunError
from tv.prompts.encoding import Batch
from tv.runtime.common_rows import common_rows


@dataclass
class Pass:
    """A batch on its way through the base at θ(α), and back."""

    alpha: float
    batch: Batch
    parts: Parts
    entered: list[Float[Tensor, "batch pos d_model"]] = field(default_factory=list)  # each block, and the end
    value: Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: Tensor | None = None  # to what comes next on the way back; None where no prompt has the metric
    shares: Shares = field(default_factory=Shares)


class ByBlock:
    """One streamed pair and metric. Raises RunError where more than one block has to be there at once."""

    def __init__(self, pair: Pair, metric: Metric) -> None:
        self.pair, self._metric, self._integrand = pair, metric, Integrand(pair, metric)
        self._like: Parts | None = None
        pair.base.weights.freeze()
        whole = sorted(self._integrand.direct.keys() & self._integrand.moved)
        if whole:
            raise RunError(f"path: the share of {whole[0]!r} takes a gradient through whole models; leave --stream out")
        if not pair.architecture.chained:
            raise RunError(
                "path: a block passes on more than its output, so whole models are needed; leave --stream out"
            )

    def passes(self, wanted: Sequence[tuple[float, Batch]]) -> Iterator[Pass]:
        """Batches with the places α at which the base is to be, each there and back, in order.

        As many go together as can wait at once.
        """
        several, size = list[tuple[float, Batch]](), 0
        for alpha, whole in wanted:
            batch = as_far_as_read(whole, self._metric.reads)
            own = batch.input_ids.numel() * self.pair.architecture.d_model * 4 * (self.pair.architecture.n_layers + 1)
            if several and size + own > FILED:
                yield from self._there_and_back(several)
                several, size = [], 0
            several.append((alpha, batch))
            size += own
        yield from self._there_and_back(several)

    def _there_and_back(self, wanted: Sequence[tuple[float, Batch]]) -> list[Pass]:
        parts: dict[tuple[str, ...], Parts] = {}
        passes = []
        for alpha, batch in wanted:
            prompts = tuple(item.prompt.id for item in batch.encoded)
            if prompts not in parts:
                parts[prompts] = self._parts(batch)
            passes.append(Pass(alpha, batch, parts[prompts]))
        n_layers, waiting = self.pair.architecture.n_layers, Waiting(self.pair.base)
        for level in range(-1, n_layers):
            for one in self._moved(passes):
                with torch.no_grad():
                    entering = one.parts.block(level, one.entered[-1].clone()) if level >= 0 else one.parts.entering()
                one.entered.append(waiting.put(entering))
        with self._integrand.listening():
            for level in range(n_layers, -2, -1):
                for one in self._moved(passes):
                    self._back(one, level)
        return passes

    def _moved(self, passes: Sequence[Pass]) -> Iterator[Pass]:
        """Each, while the base is where it belongs."""
        for alpha, some in groupby(sorted(passes, key=lambda one: one.alpha), key=lambda one: one.alpha):
            with self._at(alpha):
                yield from some

    def _at(self, alpha: float) -> AbstractContextManager[None]:
        theta = OnDemand(self._integrand.moved, partial(self._theta, alpha))
        return swapped(self.pair.base, Swap(lambda: theta, first=-1))

    def _theta(self, alpha: float, name: str) -> Tensor:
        whole = self._integrand.before[name].detach()
        before, after = common_rows(whole, self._integrand.after[name].detach())
        if before.shape == whole.shape:
            return torch.lerp(before, after, alpha)
        theta = whole.clone()
        torch.lerp(before, after, alpha, out=theta[: len(before)])
        return theta

    def _back(self, one: Pass, level: int) -> None:
        """Through the end, one block or the beginning, from the gradient behind it to that before it."""
        integrand, batch = self._integrand, one.batch
        integrand.shape = (batch.input_ids.shape[0], batch.input_ids.shape[1])
        integrand.found = one.shares
        if level == self.pair.architecture.n_layers:
            integrand.read = positions_read(batch, self._metric.reads).to(self.pair.base.device)
            one.gradient = self._end(one)
        elif one.gradient is not None:
            with torch.enable_grad():
                if level < 0:
                    one.parts.entering().backward(one.gradient)
                    one.gradient = None
                else:
                    entered = one.entered.pop().detach().requires_grad_()
                    one.parts.block(level, entered.clone()).backward(one.gradient)
                    one.gradient = entered.grad

    def _end(self, one: Pass) -> Tensor | None:
        """The metric, and its gradient to what the last block gave."""
        entered = one.entered.pop().detach().requires_grad_()
        with torch.enable_grad(), unembedding(self.pair.base, one.batch, self._metric.reads):
            logits = one.parts.behind(entered.clone(), one.parts.inputs)
            value = self._metric.values(logits, one.batch)
            known = ~value.isnan()
            if bool(known.any()):
                value[known].sum().backward()
        one.value = value.detach()
        return entered.grad

    def _parts(self, batch: Batch) -> Parts:
        device = self.pair.base.device
        inputs = {"input_ids": batch.input_ids.to(device), "attention_mask": batch.attention_mask.to(device)}
        if any(module.name == "pos_embed" for module in self.pair.architecture.modules):
            # otherwise all prompts share one row of positions, and its gradient is that of all together
            inputs["position_ids"] = torch.arange(batch.input_ids.shape[1], device=device).expand_as(batch.input_ids)
        with torch.no_grad():
            parts = Parts(self.pair.base, self.pair.architecture, inputs, self._like)
        self._like = self._like or parts
        return parts
