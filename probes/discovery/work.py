"""How many texts the costly parts of a discovery read, so that a larger model takes minutes and not hours."""

from __future__ import annotations

#: Multiply-adds that each kind of look may take in all: 80 seconds of a core that does 27 billion a second.
_WORK = 2**41
#: Logits of a batch, so many that a large vocabulary fits in memory several times.
_LOGITS = 3 * 2**21


def affordable(n_weights: int, tokens: float, fewest: int) -> int:
    """How many texts can be looked at, where each has a model of so many weights read so many tokens in all.

    Examples:
        >>> affordable(2_000_000, 2000, fewest=8), affordable(135_000_000, 2000, fewest=8)
        (549, 8)
    """
    return max(fewest, int(_WORK // (n_weights * tokens)))


def together(batch_size: int, tokens: int, vocab: int) -> int:
    """How many texts of so many tokens are read at once.

    Examples:
        >>> together(16, 32, 2_000), together(16, 32, 49_152)
        (16, 4)
    """
    return max(1, min(batch_size, _LOGITS // (tokens * vocab)))
