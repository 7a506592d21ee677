"""The tokens that a model finds likeliest next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: How many tokens are kept at each place.
TOP = 5
#: Every so many-th part of a vocabulary is looked through as one: its maximum says whether it matters.
_PARTS = 64


@dataclass(frozen=True)
class Likeliest:
    """The likeliest next tokens at n places, the likeliest first; of equals in the list the smaller id is first."""

    ids: Int[Tensor, "n k"]
    probabilities: Float[Tensor, "n k"]

    @classmethod
    def empty(cls, n: int, k: int, device: torch.device) -> Likeliest:
        """Room for n places."""
        return cls(torch.zeros(n, k, dtype=torch.long, device=device), torch.zeros(n, k, device=device))

    def __getitem__(self, at: Tensor) -> Likeliest:
        return Likeliest(self.ids[at], self.probabilities[at])

    def __setitem__(self, at: Tensor, found: Likeliest) -> None:
        self.ids[at], self.probabilities[at] = found.ids, found.probabilities


def likeliest_tokens(logits: Float[Tensor, "n vocab"], log_total: Float[Tensor, " n"], k: int = TOP) -> Likeliest:
    """The k tokens with the largest logits, and their probabilities.

    Args:
        logits: Of n places, float32.
        log_total: The logsumexp of each place's logits.
        k: How many tokens; all where the vocabulary has fewer.

    Returns:
        Ids and probabilities, on the logits' device.

    Examples:
        >>> logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
        >>> found = likeliest_tokens(logits, logits.logsumexp(1), k=2)
        >>> found.ids.tolist(), found.probabilities.tolist()
        ([[0, 1]], [[0.5, 0.25]])
    """
    ids = _candidates(logits, k)
    values, order = logits.gather(1, ids).sort(dim=1, descending=True, stable=True)
    chosen = order[:, :k]
    return Likeliest(ids.gather(1, chosen), (values[:, :k] - log_total[:, None]).exp())


def _candidates(logits: Float[Tensor, "n vocab"], k: int) -> Int[Tensor, "n some"]:
    """Ids in ascending order among which the k largest are: a sort of the whole vocabulary is dear."""
    n, vocab = logits.shape
    width = vocab // _PARTS
    if width < 2 * k:
        return torch.arange(vocab, device=logits.device).expand(n, vocab)
    whole = width * _PARTS
    largest = logits[:, :whole].reshape(n, _PARTS, width).amax(1)  # of the ids that are equal modulo `width`
    columns = largest.topk(k, dim=1).indices
    steps = torch.arange(0, whole, width, device=logits.device)
    ids = (columns[:, :, None] + steps).flatten(1)
    rest = torch.arange(whole, vocab, device=logits.device).expand(n, vocab - whole)
    return torch.cat([ids, rest], dim=1).sort(dim=1).values
