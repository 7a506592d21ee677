"""How far every head's attention pattern is from the base's, and whether its own weights or its input moved it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from probes.capture.pair import Pair
from probes.directions.attention_patterns import Patterns, each_pattern
from tv.prompts.encoding import Batch, Encoded, batches

#: Which queries a row of `attention` is a mean over.
PLACES = ("all", "first", "answer", "rest")
#: Query–key pairs that are kept of each prompt and head: those whose weight changed most.
PAIRS = 3


@dataclass(frozen=True)
class Read:
    """What a pass over prompts gives: measures by prompt and head, and the pairs whose weight changed most."""

    heads: pd.DataFrame  # the columns of `attention`
    pairs: pd.DataFrame  # the columns of `attention_pairs`, without tokens
    notes: tuple[str, ...]  # what has no pattern, a line each


def js_divergence(p: Float[Tensor, "... key"], q: Float[Tensor, "... key"]) -> Float[Tensor, "..."]:
    """The Jensen–Shannon divergence of two distributions, in nats: ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = ½(p + q).

    Args:
        p: Sums to 1 over keys.
        q: The same.

    Returns:
        Between 0 and ln 2.

    Source: J. Lin (1991), IEEE Trans. Inf. Theory 37.

    Examples:
        >>> js_divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).item()  # ln 2
        0.6931471824645996
    """
    middle = (p + q) / 2
    tiny = torch.finfo(middle.dtype).tiny
    apart = torch.special.xlogy(p, p / middle.clamp(min=tiny)) + torch.special.xlogy(q, q / middle.clamp(min=tiny))
    return (apart.sum(-1) / 2).clamp(min=0)


def read_attention(
    pair: Pair,
    encoded: Sequence[Encoded],
    *,
    batch_size: int = 16,
    pairs: int = PAIRS,
    told: Callable[[int, int], None] | None = None,
) -> Read:
    """The heads of both models on prompts.

    Args:
        pair: Both models, whole in memory.
        encoded: The prompts.
        batch_size: Prompts of a forward pass. Memory: four patterns of one module, batch × heads × positions² each.
        pairs: Query–key pairs that are kept of each prompt and head.
        told: Called with (prompts read, all).

    Returns:
        A row per prompt, head and place.
    """
    rows: list[pd.DataFrame] = []
    kept: list[pd.DataFrame] = []
    missing: dict[str, None] = {}
    done = 0
    for batch in batches(encoded, batch_size, pair.pad_id):

        def receive(found: Patterns, batch: Batch = batch) -> None:
            rows.extend(_measured(found, batch))
            if pairs:
                kept.append(_changed(found, batch, pairs))

        missing |= dict.fromkeys(each_pattern(pair, batch, receive))
        done += len(batch.encoded)
        if told:
            told(done, len(encoded))
    heads = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(_KEYS))
    changed = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()
    notes = [f"{path} makes no pattern that could be read, or several" for path in missing]
    return Read(heads, changed, (*_without(pair), *notes))


_KEYS = ("prompt_id", "layer", "component", "head", "place", "n")


def _without(pair: Pair) -> Iterator[str]:
    """The mixers that have no pattern."""
    found: dict[str, list[int]] = {}
    for block in pair.architecture.blocks:
        for writer in block.writers:
            if writer.component != "mlp" and not writer.component.startswith("attn"):
                found.setdefault(writer.component, []).append(block.layer)
    for component, layers in found.items():
        yield f"{component} mixes positions without a pattern: layers {', '.join(map(str, layers))} have no rows for it"


def _measured(found: Patterns, batch: Batch) -> Iterator[pd.DataFrame]:
    """The rows of one module on one batch."""
    base, own, inherited, tuned = (
        _normalised(pattern.weights) for pattern in (found.base, found.own, found.inherited, found.tuned)
    )
    js, js_own, js_inherited = (js_divergence(other, base) for other in (tuned, own, inherited))
    scores = _Scores.of(found)
    values = {
        "js": js,
        "js_own": js_own,
        "js_inherited": js_inherited,
        "own": (js_own + js - js_inherited) / 2,
        "inherited": (js_inherited + js - js_own) / 2,
        "first_base": base[..., 0],
        "first_tuned": tuned[..., 0],
    }
    sees = found.base.visible.to(base.device)[:, 0].sum(-1) > 1
    places = _places(batch, sees)
    ids = [item.prompt.id for item in batch.encoded]
    n_heads = js.shape[1]
    for name, at in places.items():
        n = at.sum(-1)
        there = n > 0
        if not bool(there.any()):
            continue
        here = at[:, None].to(torch.float64)
        means = {what: ((value * here).sum(-1) / here.sum(-1).clamp(min=1)) for what, value in values.items()}
        means |= scores.shares(here)
        frame = {what: value[there].flatten().cpu().numpy() for what, value in means.items()}
        chosen = [i for i, known in enumerate(there.tolist()) if known]
        yield pd.DataFrame(
            {
                "prompt_id": np.repeat([ids[i] for i in chosen], n_heads),
                "layer": found.layer,
                "component": found.component,
                "head": np.tile(np.arange(n_heads), len(chosen)),
                "place": name,
                "n": np.repeat(n[there].cpu().numpy(), n_heads),
                **frame,
                "error": max(found.error, scores.error),
            }
        )


@dataclass(frozen=True)
class _Scores:
    """The change of the scores before the softmax and its three terms, each about its mean over the visible keys.

    A softmax does not see what all scores of a query have in common.
    """

    change: Float[Tensor, "batch head query key"]
    terms: dict[str, Float[Tensor, "batch head query key"]]
    n: Float[Tensor, "batch head query"]  # visible keys
    error: float  # the largest |Σ terms − change|

    @classmethod
    def of(cls, found: Patterns) -> _Scores:
        device = found.base.scores.device
        visible = found.base.visible & found.tuned.visible.to(device)
        n = visible.sum(-1).clamp(min=1).double()

        def centred(pattern: Tensor) -> Tensor:
            scores = pattern.to(device).double().masked_fill(~visible, 0.0)
            return (scores - scores.sum(-1, keepdim=True) / n[..., None]).masked_fill(~visible, 0.0)

        base, own, inherited, tuned = (
            centred(pattern.scores) for pattern in (found.base, found.own, found.inherited, found.tuned)
        )
        terms = {
            "score_own": own - base,
            "score_inherited": inherited - base,
            "score_interaction": tuned - own - inherited + base,
        }
        change = tuned - base
        error = float((sum(terms.values()) - change).abs().max())
        return cls(change, terms, n, error)

    def shares(self, at: Float[Tensor, "batch 1 query"]) -> dict[str, Float[Tensor, "batch head"]]:
        """The size of the change at these queries, and each term's share of it: ⟨term, change⟩/‖change‖²."""
        squares = (self.change**2).sum(-1) * at
        whole = squares.sum(-1)
        size = (whole / (self.n * at).sum(-1).clamp(min=1)).sqrt()
        nothing = whole == 0
        found = {"score_change": size}
        for name, term in self.terms.items():
            share = ((term * self.change).sum(-1) * at).sum(-1) / whole
            found[name] = share.masked_fill(nothing, float("nan"))
        return found


def _normalised(weights: Tensor) -> Float[Tensor, "batch head query key"]:
    """In float64, and to a sum of 1 where a lower precision has rounded it."""
    weights = weights.double().cpu()
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _places(batch: Batch, sees: Bool[Tensor, "batch query"]) -> dict[str, Bool[Tensor, "batch query"]]:
    """The queries of each kind. A query that sees one key alone has no choice, and is in none."""
    real = batch.attention_mask.bool().to(sees.device) & sees
    pos = torch.arange(real.shape[1], device=sees.device).expand_as(real)
    answer = pos == torch.tensor([item.answer_pos for item in batch.encoded], device=sees.device)[:, None]
    first = pos == 0
    return {
        "all": real,
        "first": real & first,
        "answer": real & answer & ~first,
        "rest": real & ~first & ~answer,
    }


def _changed(found: Patterns, batch: Batch, n: int) -> pd.DataFrame:
    """The query–key pairs of every prompt and head whose weight changed most."""
    weights = [p.weights.float().cpu() for p in (found.base, found.own, found.inherited, found.tuned)]
    base, tuned = weights[0], weights[-1]
    real = batch.attention_mask.bool()[:, None, :, None]
    step = (tuned - base).abs().masked_fill(~real, 0.0)
    n_heads, n_keys = step.shape[1], step.shape[3]
    flat = step.flatten(2)
    at = flat.topk(min(n, flat.shape[-1])).indices
    query, key = at // n_keys, at % n_keys
    length = batch.input_ids.shape[1]
    shape = (len(batch.encoded), n_heads, at.shape[-1])

    def taken(value: Tensor) -> NDArray[np.float32]:
        picked: NDArray[np.float32] = value.flatten(2).gather(2, at).flatten().numpy()
        return picked

    ids = np.array([item.prompt.id for item in batch.encoded], dtype=object)
    key = torch.where(key >= length, torch.full_like(key, -1), key)
    frame = pd.DataFrame(
        {
            "prompt_id": np.broadcast_to(ids[:, None, None], shape).ravel(),
            "layer": found.layer,
            "component": found.component,
            "head": np.broadcast_to(np.arange(n_heads)[None, :, None], shape).ravel(),
            "query_pos": query.flatten().numpy(),
            "key_pos": key.flatten().numpy(),
            "weight_base": taken(base),
            "weight_tuned": taken(tuned),
            "weight_own": taken(weights[1]),
            "weight_inherited": taken(weights[2]),
        }
    )
    return frame[frame.weight_base != frame.weight_tuned]
