"""Prompts in one row, without padding: a tree of tokens, in which prompts that begin alike share what they begin with.

Each token sees itself and those that lead to it, at its own position, so that a prompt's outputs are those that it has
alone. What comes after the last position that the metric reads is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from probes.attribution.metric import Reads
from tv.prompts.encoding import Encoded

#: Tokens of one row: at least so many, and four times the longest prompt, so that a shared beginning pays. Not more,
#: because attention compares all tokens of a row with each other; a longer prompt has a row of its own.
FEWEST, MOST = 96, 512


@dataclass(frozen=True)
class Pack:
    """One row of several prompts' tokens."""

    encoded: tuple[Encoded, ...]
    ids: Int[Tensor, "1 n"]
    positions: Int[Tensor, "1 n"]
    mask: Float[Tensor, "1 1 n n"]  # added to attention's scores: 0 where a token sees another
    read: Int[Tensor, " k"]  # the tokens at which the logits are read
    places: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # of each prompt: positions, and their indices in read


@dataclass(frozen=True)
class Sheet:
    """Packs side by side, each a row; a shorter one is padded with tokens that see themselves alone."""

    packs: tuple[Pack, ...]
    ids: Int[Tensor, "rows n"]
    positions: Int[Tensor, "rows n"]
    mask: Float[Tensor, "rows 1 n n"]
    read: Int[Tensor, "rows k"]  # of each; a pack that reads fewer repeats its last


def sheet(packs: Sequence[Pack]) -> Sheet:
    """These packs as one batch."""
    n, k = max(pack.ids.shape[1] for pack in packs), max(len(pack.read) for pack in packs)
    nothing = torch.finfo(torch.float32).min
    mask = torch.full((len(packs), 1, n, n), nothing)
    mask[:, 0].diagonal(dim1=1, dim2=2).zero_()
    for row, pack in zip(mask[:, 0], packs, strict=True):
        size = pack.ids.shape[1]
        row[:size, :size] = pack.mask[0, 0]
    return Sheet(
        tuple(packs),
        torch.cat([pad(pack.ids, (0, n - pack.ids.shape[1])) for pack in packs]),
        torch.cat([pad(pack.positions, (0, n - pack.ids.shape[1])) for pack in packs]),
        mask,
        torch.stack([torch.cat([pack.read, pack.read[-1:].expand(k - len(pack.read))]) for pack in packs]),
    )


def packs(encoded: Sequence[Encoded], reads: Reads | None, tokens: int | None = None) -> list[Pack]:
    """All prompts, in rows of at most `tokens` tokens; see `FEWEST` and `MOST` without it."""
    if tokens is None:
        tokens = min(MOST, max(FEWEST, 4 * max(len(item.ids) for item in encoded)))
    found, several = [], list[tuple[Encoded, tuple[int, ...]]]()
    tree = _Tree()
    # Sorted, so that those that begin alike come together.
    for item in sorted(encoded, key=lambda item: item.ids):
        places = tuple(range(len(item.ids)) if reads is None else sorted({*reads(item)}))
        ids = item.ids[: places[-1] + 1]
        if several and tree.size_with(ids) > tokens:
            found.append(_pack(several, tree))
            several, tree = [], _Tree()
        tree.add(ids)
        several.append((item, places))
    return [*found, _pack(several, tree)] if several else found


class _Tree:
    """Tokens by what leads to them; a token comes after all that it sees."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], int] = {}  # (the token before, or −1; id) → index
        self.ids: list[int] = []
        self.before: list[int] = []

    def path(self, ids: Sequence[int]) -> Iterator[int]:
        """The indices of a prompt's tokens, as far as they are there."""
        at = -1
        for token in ids:
            if (at, token) not in self._places:
                return
            at = self._places[at, token]
            yield at

    def size_with(self, ids: Sequence[int]) -> int:
        return len(self.ids) + len(ids) - sum(1 for _ in self.path(ids))

    def add(self, ids: Sequence[int]) -> None:
        there = list(self.path(ids))
        at = there[-1] if there else -1
        for token in ids[len(there) :]:
            self._places[at, token] = len(self.ids)
            self.ids.append(token)
            self.before.append(at)
            at = len(self.ids) - 1


def _pack(several: Sequence[tuple[Encoded, tuple[int, ...]]], tree: _Tree) -> Pack:
    n = len(tree.ids)
    sees = torch.eye(n, dtype=torch.bool)
    positions = torch.zeros(n, dtype=torch.long)
    for i, before in enumerate(tree.before):
        if before >= 0:
            sees[i] |= sees[before]
            positions[i] = positions[before] + 1
    paths = [list(tree.path(item.ids[: places[-1] + 1])) for item, places in several]
    read = sorted({path[place] for path, (_, places) in zip(paths, several, strict=True) for place in places})
    index = {token: i for i, token in enumerate(read)}
    mask = torch.zeros(n, n).masked_fill_(~sees, torch.finfo(torch.float32).min)
    return Pack(
        tuple(item for item, _ in several),
        torch.tensor(tree.ids)[None],
        positions[None],
        mask[None, None],
        torch.tensor(read),
        tuple(
            (places, tuple(index[path[place]] for place in places))
            for path, (_, places) in zip(paths, several, strict=True)
        ),
    )
