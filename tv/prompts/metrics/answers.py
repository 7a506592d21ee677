"""Metrics of what a model answers where a prompt's target is expected."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tv.prompts.metric import answering, metric, parting

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from tv.prompts.encoding import Encoded


@metric("target_nll", words="target NLL", unit="nats", better=False, reads=answering, by_position=True, matters=0.05)
def target_nll(logits: Float[Tensor, "pos vocab"], item: Encoded) -> Float[Tensor, ""]:
    """−log p(target | text), nats, summed over the target's tokens."""
    return _token_nll(logits, item).sum()


@metric(
    "logit_diff",
    words="logit difference",
    unit="logits, target − foil",
    better=True,
    needs="foil",
    reads=parting,
    by_position=True,
    matters=0.1,
)
def logit_diff(logits: Float[Tensor, "pos vocab"], item: Encoded) -> Float[Tensor, ""]:
    """logit[target] − logit[foil] at the position where the two part."""
    at_answer = logits[item.answer_pos].double()
    return at_answer[item.target_id] - at_answer[item.foil_id]


@metric(
    "exact_match",
    words="exact match",
    unit="share of prompts",
    better=True,
    smooth=False,
    reads=answering,
    by_position=True,
    matters=0.02,
)
def exact_match(logits: Float[Tensor, "pos vocab"], item: Encoded) -> Float[Tensor, ""]:
    """1 if greedy decoding gives the target, else 0."""
    before, answer = _scored(logits, item)
    return (before.argmax(-1) == answer).all().double()


@metric(
    "target_nll_per_token",
    words="NLL per token",
    unit="nats per token",
    better=False,
    reads=answering,
    by_position=True,
    matters=0.02,
)
def target_nll_per_token(logits: Float[Tensor, "pos vocab"], item: Encoded) -> Float[Tensor, ""]:
    """−log p(target | text), nats, mean over the target's tokens, so that long answers count as much as short ones."""
    return _token_nll(logits, item).mean()


@metric(
    "token_accuracy",
    words="token accuracy",
    unit="share of the target's tokens",
    better=True,
    smooth=False,
    reads=answering,
    by_position=True,
    matters=0.02,
)
def token_accuracy(logits: Float[Tensor, "pos vocab"], item: Encoded) -> Float[Tensor, ""]:
    """The share of the target's tokens that are the likeliest next one, given the target's tokens before them."""
    before, answer = _scored(logits, item)
    return (before.argmax(-1) == answer).double().mean()


def _token_nll(logits: Tensor, item: Encoded) -> Tensor:
    """−log p of each token of the target."""
    before, answer = _scored(logits, item)
    return -before.log_softmax(-1).gather(-1, answer[:, None])[:, 0]


def _scored(logits: Tensor, item: Encoded) -> tuple[Tensor, Tensor]:
    """The logits before each token of the target, and those tokens."""
    import torch

    before = logits[item.scored.start : item.scored.stop].double()
    return before, torch.tensor(item.ids[item.scored.start + 1 : item.scored.stop + 1], device=before.device)
