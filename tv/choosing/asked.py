"""A set of prompts and the number that is read of each: what a choice of scales is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tv.errors import InputError
from tv.prompts.behaviour import batched, metric_values, token_nll
from tv.prompts.encoding import Batch, batches, positions
from tv.prompts.metric import METRICS
from tv.prompts.sets import Prompt
from tv.stats.means import Floats

#: The metric where none is named: of prompts with targets `target_nll`; the words of what stands in without targets.
NLL = "target_nll"
TEXT = "text NLL"


@dataclass(frozen=True)
class Asked:
    """Prompts, encoded, with the metric that is read of them: higher is better, whatever the metric's own sense."""

    prompts: tuple[Prompt, ...]
    batch: Sequence[Batch]
    metric: str  # of tv.prompts.metrics; TEXT for the mean −log p of a text's tokens

    @cached_property
    def clusters(self) -> list[str]:
        """Of each prompt."""
        return [prompt.cluster or prompt.id for prompt in self.prompts]

    @property
    def words(self) -> str:
        """The metric, for people."""
        return TEXT if self.metric == TEXT else METRICS[self.metric].words

    @property
    def unit(self) -> str:
        """Its unit."""
        return "nats a token" if self.metric == TEXT else METRICS[self.metric].unit

    @property
    def matters(self) -> float:
        """The smallest mean change that matters."""
        return METRICS["target_nll_per_token"].matters if self.metric == TEXT else METRICS[self.metric].matters

    @property
    def smooth(self) -> bool:
        """Whether its gradient is meaningful."""
        return self.metric == TEXT or METRICS[self.metric].smooth

    def values(self, model: PreTrainedModel) -> Floats:
        """The metric of every prompt, in its own sense."""
        with torch.inference_mode():
            return np.concatenate([self._read(model, batch).numpy() for batch in self.batch])

    @property
    def sign(self) -> int:
        """1 where more of the metric is better, −1 where less is."""
        return 1 if self.metric != TEXT and METRICS[self.metric].better else -1

    def backward(self, model: PreTrainedModel, weights: Floats) -> Floats:
        """The values, after the gradient of Σ weight × value was added to the parameters; NaN where a weight is 0."""
        found, at = np.full(len(self.prompts), np.nan), 0
        for batch in self.batch:
            n = len(batch.encoded)
            share = weights[at : at + n]
            chosen = np.flatnonzero(share)
            if len(chosen):
                values = self._read(model, batches([batch.encoded[i] for i in chosen], n, 0)[0])
                (torch.from_numpy(share[chosen]) * values).sum().backward()
                found[at + chosen] = values.detach().numpy()
            at += n
        return found

    def _read(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        if self.metric != TEXT:
            return metric_values(METRICS[self.metric], logits, batch)
        losses = []
        for i, item in enumerate(batch.encoded):
            places = positions(item, "after template")
            nll = token_nll(logits[i, : places.stop], ids[i, : places.stop])
            losses.append(nll[max(places.start, 1) :].double().mean().cpu())
        return torch.stack(losses)


def ask(
    prompts: Sequence[Prompt],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metric: str | None,
    batch_size: int,
    name: str,
) -> Asked:
    """The prompts with their metric. Raises InputError where it cannot be read of all, or says not what is better."""
    if metric is not None:
        require_metric(metric)
    found = batched(prompts, model, tokenizer, batch_size)  # in an order of their own
    items = [item for batch in found for item in batch.encoded]
    metric = metric or (NLL if all(METRICS[NLL].has(item) for item in items) else TEXT)
    odd = None if metric == TEXT else next((item for item in items if not METRICS[metric].has(item)), None)
    if odd is not None:
        raise InputError(f"{name}: prompt {odd.prompt.id!r} lacks what {metric} reads: {METRICS[metric].needed}")
    return Asked(tuple(item.prompt for item in items), found, metric)


def require_metric(name: str) -> None:
    """Raise InputError where no metric of this name says what is better."""
    if name not in METRICS or METRICS[name].better is None:
        known = ", ".join(one for one in METRICS if METRICS[one].better is not None)
        raise InputError(f"metric {name!r}: one of {known}")


def halves(asked: Asked, change: Floats, seed: int) -> NDArray[np.bool_]:
    """True for one half of the prompts: whole clusters, drawn so that both halves hold about as much of the change."""
    names, which = np.unique(np.asarray(asked.clusters, str), return_inverse=True)
    if len(names) < 2:
        raise InputError(f"{len(names)} cluster of prompts: a choice is fitted on some and tested on others; give more")
    size = np.bincount(which, weights=np.nan_to_num(change), minlength=len(names))
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-size[order], kind="stable")]
    first = np.zeros(len(names), bool)
    first[order[0::4]] = True  # of each four in order of size the first and the last
    first[order[3::4]] = True
    half: NDArray[np.bool_] = first[which]
    return half
