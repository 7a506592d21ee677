"""The tokens that a model finds likeliest next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: How many tokens are kept at each place.
TOP = 5
#: So many tokens of a vocabulary are looked through as one: their maximum says whether they matter.
_PARTS = 64
#: Where a vocabulary has so many times more, that is quicker.
_WORTH = 128


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
    k = min(k, logits.shape[-1])
    ids = _candidates(logits, k)
    among = logits if ids is None else logits.gather(1, ids)
    found = among.topk(k, dim=1).indices
    found = (found if ids is None else ids.gather(1, found)).sort(dim=1).values  # of equals the smaller id is first
    values, order = logits.gather(1, found).sort(dim=1, descending=True, stable=True)
    return Likeliest(found.gather(1, order), (values - log_total[:, None]).exp())


def _candidates(logits: Float[Tensor, "n vocab"], k: int) -> Int[Tensor, "n some"] | None:
    """Ids among which the k largest are, since a maximum is found sooner than an order; None: all of a small one."""
    n, vocab = logits.shape
    width = vocab // _PARTS
    if width < _WORTH:
        return None
    whole = width * _PARTS
    largest = logits[:, :whole].reshape(n, _PARTS, width).amax(1)  # of the ids that are equal modulo `width`
    columns = largest.topk(k, dim=1).indices
    steps = torch.arange(0, whole, width, device=logits.device)
    rest = torch.arange(whole, vocab, device=logits.device).expand(n, vocab - whole)
    return torch.cat([(columns[:, :, None] + steps).flatten(1), rest], dim=1)
