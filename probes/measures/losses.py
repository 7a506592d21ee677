"""Each token's loss in either model, and how far their predictions lie apart: one pass over both models' logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.measures.places import Places
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
    a, b = base.flatten(0, 1), tuned.flatten(0, 1)
    whole = len(rows) == len(a)
    step = max(1, _PIECE // base.shape[-1])
    for i in range(0, len(rows), step):
        at, token = rows[i : i + step], following[i : i + step, None]
        piece = slice(i, i + step) if whole else at
        x = a[piece].float()
        y = b[piece if whole else at.to(b.device)].to(x.device).float()
        (greedy_base[at], p, of_x), (greedy_tuned[at], _, of_y) = _weighed(x), _weighed(y)
        nll_base[at] = of_x - x.gather(1, token)[:, 0]
        nll_tuned[at] = of_y - y.gather(1, token)[:, 0]
        if len(x[0]) != len(y[0]):
            x, y = common_rows(x, y, dim=-1)
            (_, p, of_x), (_, _, of_y) = _weighed(x), _weighed(y)
        kl[at] = (torch.linalg.vecdot(p, x - y) / p.sum(-1) - of_x + of_y).clamp(min=0)
    before = (flat - 1).clamp(min=0)
    nothing = torch.full_like(kl[flat], float("nan"))
    return TokenLosses(
        *(torch.where(predicted, nll[before], nothing) for nll in (nll_base, nll_tuned)),
        *(value[flat] for value in (kl, greedy_base, greedy_tuned)),
    )


def likeliest(logits: Float[Tensor, "... vocab"]) -> Int[Tensor, "..."]:
    """The token that a model chooses by greedy decoding; on a CPU the first of several."""
    # On a CPU numpy finds the largest about five times as fast as torch; it is the costliest step of all.
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


def _weighed(
    logits: Float[Tensor, "n vocab"],
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n vocab"], Float[Tensor, " n"]]:
    """The likeliest tokens, every token's probability as a multiple of theirs, and the logsumexp of the logits."""
    greedy = likeliest(logits)
    top = logits.gather(1, greedy[:, None])
    weights = (logits - top).exp_()
    return greedy, weights, top[:, 0] + weights.sum(-1).log()
