"""The rows that two tensors of a grown vocabulary have in common."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor


def common_rows(
    a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."], dim: int = 0
) -> tuple[Shaped[Tensor, "..."], Shaped[Tensor, "..."]]:
    """Both tensors, cut to the rows that both have.

    Fine-tuning adds tokens at the end of a vocabulary, or pads it. Embeddings, unembeddings and logits then differ in
    length, and their leading rows are the same tokens: only these are compared, subtracted and added. All other
    tensors of a pair have one shape and come back whole.

    Args:
        a: A tensor of one model.
        b: The same tensor of the other.
        dim: The axis with one entry per token: 0 for weights, −1 for logits.

    Returns:
        Views of `a` and `b`; tensors without dimensions as they are.

    Examples:
        >>> import torch
        >>> base, tuned = torch.zeros(5, 2), torch.ones(7, 2)
        >>> [tuple(rows.shape) for rows in common_rows(base, tuned)]
        [(5, 2), (5, 2)]
    """
    if not a.ndim:
        return a, b
    n = min(a.shape[dim], b.shape[dim])
    return a.narrow(dim, 0, n), b.narrow(dim, 0, n)
