"""Metrics of what a model answers where a prompt's target is expected."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tv.prompts.encoding import Encoded
from tv.prompts.metric import answering, metric


@metric("target_nll", words="target NLL", unit="nats", better=False, reads=answering)
def target_nll(logits: Float[Tensor, "pos vocab"], item: Encoded) -> Float[Tensor, ""]:
    """−log p(target | text), nats, summed over the target's tokens."""
    before, answer = _scored(logits, item)
    return -before.log_softmax(-1).gather(-1, answer[:, None]).sum()


@metric(
    "logit_diff", words="logit difference", unit="logits, target − foil", better=True, needs="foil", reads=answering
)
def logit_diff(logits: Float[Tensor, "pos vocab"], item: Encoded) -> Float[Tensor, ""]:
    """logit[target] − logit[foil] at the position where the two part."""
    at_answer = logits[item.answer_pos].double()
    return at_answer[item.target_id] - at_answer[item.foil_id]


@metric("exact_match", words="exact match", unit="share of prompts", better=True, smooth=False, reads=answering)
def exact_match(logits: Float[Tensor, "pos vocab"], item: Encoded) -> Float[Tensor, ""]:
    """1 if greedy decoding gives the target, else 0."""
    before, answer = _scored(logits, item)
    return (before.argmax(-1) == answer).all().double()


def _scored(logits: Tensor, item: Encoded) -> tuple[Tensor, Tensor]:
    """The logits before each token of the target, and those tokens."""
    before = logits[item.scored.start : item.scored.stop].double()
    return before, torch.tensor(item.ids[item.scored.start + 1 : item.scored.stop + 1], device=before.device)
