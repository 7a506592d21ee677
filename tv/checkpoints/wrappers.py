"""Checkpoints whose tensors carry the names of a wrapper around the model: torch.compile, DDP, FSDP, peft."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tv.checkpoints.leftovers import is_ignored, is_left_over
from tv.checkpoints.tensors import Readable
from tv.checkpoints.tree import Tree
from tv.errors import CheckpointError

#: Around a whole model, and around any part of it.
_OUTER = re.compile(r"^(_orig_mod|module|_forward_module|_fsdp_wrapped_module|base_model\.model)\.")
_INNER = re.compile(r"(?<=\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def unwrapped(
    source: str, stored: Mapping[str, Readable], tree: Tree
) -> tuple[Mapping[str, Readable], tuple[str, ...]]:
    """The stored tensors by their names without a wrapper's, and a note on it; as they are where the model has them.

    Args:
        source: The checkpoint, for messages.
        stored: The tensors of its files by name.
        tree: Of its model.

    Returns:
        (tensors by name, notes).

    Raises:
        CheckpointError: Names carry a wrapper's, and without it they are still not those of this model.
    """
    plain = {name: _plain(name) for name in stored}
    shared = _shared(stored, tree)
    if shared and all(name == other for name, other in plain.items()):
        plain = {name: name.removeprefix(shared) for name in stored}
    if all(name == other for name, other in plain.items()) or not _misfit(stored, tree):
        return stored, ()
    first = next(name for name, other in plain.items() if name != other)
    prefix = first[: len(first) - len(plain[first])] if first.endswith(plain[first]) else "_orig_mod."
    without: Mapping[str, Readable] = {other: _Plain(other, stored[name]) for name, other in plain.items()}
    odd = _misfit(without, tree)
    if odd or len(without) < len(stored):
        raise CheckpointError(
            f"{source}: its tensors carry the prefix {prefix!r} of a wrapped model ({first!r}), and without it "
            f"{odd or 'two have one name'}; save the model itself, not what wraps it"
        )
    note = f"{source}: its tensors carry the prefix {prefix!r} of a wrapped model, and are read without it"
    return without, (note,)


def _plain(name: str) -> str:
    while match := _OUTER.match(name):
        name = name[match.end() :]
    return _INNER.sub("", name)


def _shared(stored: Mapping[str, Readable], tree: Tree) -> str:
    """What every stored name begins with, up to a dot, and no name of the model does; empty where there is none."""
    first, last = min(stored), max(stored)  # what these two begin with, all between them do
    same = [a == b for a, b in zip(first, last, strict=False)]
    start = first[: [*same, False].index(False)].rpartition(".")[0]
    while start and any(name.startswith(f"{start.rpartition('.')[2]}.") for name in tree.state):
        start = start.rpartition(".")[0]  # what the model's names begin with is no prefix
    return f"{start}." if start else ""


def _misfit(stored: Mapping[str, Readable], tree: Tree) -> str:
    """The first parameter without a tensor, or tensor without a place in the model; empty where all fit."""
    held = tree.sort(stored)
    missing = next((name for name, names in tree.aliases.items() if not held.keys() & set(names)), None)
    if missing is not None:
        return f"{missing!r} is missing"
    known = set(tree.state)
    others = [key for name, files in held.items() if name not in known for key in files.keys]
    odd = next((key for key in others if not (is_left_over(key) or is_ignored(key, tree))), None)
    return "" if odd is None else f"{odd!r} is in no module"


@dataclass(frozen=True)
class _Plain:
    """A stored tensor under its name without a wrapper's."""

    name: str
    of: Readable

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shape

    @property
    def dtype(self) -> str:
        return self.of.dtype

    def load(self, index: int = -1) -> Tensor:
        return self.of.load(index)

    def sample(self) -> bytes:
        return self.of.sample()
