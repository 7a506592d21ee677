"""Each token's loss in either model, and how far their predictions lie apart: one pass over both models' logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.measures.places import Places
from probes.measures.predictions import TOP, Likeliest, likeliest_tokens
from tv.runtime.common_rows import common_rows

#: Logits processed together: what a core's cache holds.
_PIECE = 2**19


@dataclass(frozen=True)
class TokenLosses:
    """Of the token at each of n places, nats."""

    nll_base: Float[Tensor, " n"]  # −log p(token | those before it); NaN for a prompt's first, which nothing predicts
    nll_tuned: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]  # KL(base ‖ tuned) of the predictions of the next token, over the vocabulary in common
    greedy_base: Int[Tensor, " n"]  # the next token that each model finds likeliest
    greedy_tuned: Int[Tensor, " n"]
    likely_base: Likeliest
    likely_tuned: Likeliest


def token_losses(
    base: Float[Tensor, "batch pos vocab"],
    tuned: Float[Tensor, "batch pos vocab"],
    ids: Int[Tensor, "batch pos"],
    places: Places,
) -> TokenLosses:
    """Losses at `places`. Logits are read a few positions at a time; no copy of them is made."""
    flat, start = places.flat(base.device), places.rows(base.device) * places.shape[1]
    predicted = flat > start  # by the position before
    needed = torch.zeros(base.shape[0] * base.shape[1], dtype=torch.bool, device=base.device)
    needed[flat] = True
    needed[(flat - 1).clamp(min=0)] |= predicted
    rows = needed.nonzero()[:, 0]
    following = ids.flatten().roll(-1).to(base.device)[rows]
    nll_base, nll_tuned, kl = (torch.full(needed.shape, float("nan"), device=base.device) for _ in range(3))
    greedy_base, greedy_tuned = (torch.zeros(needed.shape, dtype=torch.long, device=base.device) for _ in range(2))
    likely = [Likeliest.empty(len(needed), min(TOP, logits.shape[-1]), base.device) for logits in (base, tuned)]
    a, b = base.flatten(0, 1), tuned.flatten(0, 1)
    whole = len(rows) == len(a)
    step = max(1, _PIECE // base.shape[-1])
    for i in range(0, len(rows), step):
        at, token = rows[i : i + step], following[i : i + step, None]
        piece = slice(i, i + step) if whole else at
        x = a[piece].float()
        y = b[piece if whole else at.to(b.device)].to(x.device).float()
        seen, seen_tuned = weighed(x), weighed(y)
        greedy_base[at], greedy_tuned[at] = seen.greedy, seen_tuned.greedy
        nll_base[at] = seen.log_total - x.gather(1, token)[:, 0]
        nll_tuned[at] = seen_tuned.log_total - y.gather(1, token)[:, 0]
        for kept, logits, of in zip(likely, (x, y), (seen, seen_tuned), strict=True):
            kept[at] = likeliest_tokens(logits, of.log_total)
        kl[at] = divergence(x, y, seen, seen_tuned)
    before = (flat - 1).clamp(min=0)
    nothing = torch.full_like(kl[flat], float("nan"))
    losses = [torch.where(predicted, nll[before], nothing) for nll in (nll_base, nll_tuned)]
    greedy = greedy_base[flat], greedy_tuned[flat]
    return TokenLosses(losses[0], losses[1], kl[flat], *greedy, likely[0][flat], likely[1][flat])


def likeliest(logits: Float[Tensor, "... vocab"]) -> Int[Tensor, "..."]:
    """The token that a model chooses by greedy decoding; on a CPU the first of several."""
    # On a CPU numpy finds the largest about five times as fast as torch; it is the costliest step of all.
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


@dataclass(frozen=True)
class Weighed:
    """A softmax that is not divided by its sum."""

    greedy: Int[Tensor, " n"]  # the likeliest token
    weights: Float[Tensor, "n vocab"]  # every token's probability as a multiple of the likeliest's
    total: Float[Tensor, " n"]  # their sum
    log_total: Float[Tensor, " n"]  # the logsumexp of the logits


def weighed(logits: Float[Tensor, "n vocab"]) -> Weighed:
    """The next token's distribution; −log p of a token is `log_total` less its logit."""
    greedy = likeliest(logits)
    top = logits.gather(1, greedy[:, None])
    weights = (logits - top).exp_()
    total = weights.sum(-1)
    return Weighed(greedy, weights, total, top[:, 0] + total.log())


def divergence(
    base: Float[Tensor, "n vocab"], tuned: Float[Tensor, "n vocab"], of_base: Weighed, of_tuned: Weighed
) -> Float[Tensor, " n"]:
    """KL(base ‖ tuned), nats, of two models' logits weighed before; over the vocabulary in common."""
    if base.shape[-1] != tuned.shape[-1]:
        base, tuned = common_rows(base, tuned, dim=-1)
        of_base, of_tuned = weighed(base), weighed(tuned)
    # The tuned model's weights are of no more use: their memory takes the difference.
    apart = torch.sub(base, tuned, out=of_tuned.weights)
    inside = torch.linalg.vecdot(of_base.weights, apart) / of_base.total
    return (inside - of_base.log_total + of_tuned.log_total).clamp(min=0)
