"""Behaviour metrics of a forward pass: what the model would answer, and how sure it is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tv.prompts import Batch

METRICS = ("target_nll", "logit_diff", "exact_match")


def metrics(logits: Float[Tensor, "batch pos vocab"], batch: Batch) -> dict[str, Float[Tensor, " batch"]]:
    """Per prompt, float64; NaN where the prompt lacks what the metric needs.

    target_nll: −log p(target | text), nats, summed over the target's tokens. logit_diff: logit[target] − logit[foil]
    at the position where the two part. exact_match: 1 if greedy decoding gives the target, else 0.
    """
    values = {name: torch.full((len(batch.encoded),), float("nan"), dtype=torch.float64) for name in METRICS}
    for i, item in enumerate(batch.encoded):
        scored = item.scored
        if len(scored):
            at = logits[i, scored.start : scored.stop].double()
            answer = torch.tensor(item.ids[scored.start + 1 : scored.stop + 1], device=at.device)
            values["target_nll"][i] = -at.log_softmax(-1).gather(-1, answer[:, None]).sum()
            values["exact_match"][i] = float((at.argmax(-1) == answer).all())
        if item.foil_id >= 0:
            at_answer = logits[i, item.answer_pos].double()
            values["logit_diff"][i] = at_answer[item.target_id] - at_answer[item.foil_id]
    return values


def token_nll(logits: Float[Tensor, "pos vocab"], ids: Tensor) -> Float[Tensor, " pos"]:
    """−log p of each token given those before it, nats; NaN for the first, which nothing predicts."""
    nll = -logits[:-1].float().log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return torch.cat([nll.new_full((1,), float("nan")), nll])


def kl_divergence(base: Float[Tensor, "n vocab"], tuned: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    """KL(base ‖ tuned) of the next-token distributions, nats. Of two vocabularies, the rows in common are compared."""
    common = min(base.shape[-1], tuned.shape[-1])
    p, q = base[..., :common].float().log_softmax(-1), tuned[..., :common].float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)
