"""Stored tensors that no module of the model takes: heads that predict further tokens, drafts, a tower left away.

They are outside the forward pass. What both sides store of them is a row of `weights` for each part of the tree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint


def groups_outside(base: Checkpoint, tuned: Checkpoint) -> tuple[Module, ...]:
    """A group for every part that both sides store, by the name of its place in the tree: `mtp`."""
    depth, beside = base.architecture.n_layers, _outside(tuned)
    both = [name for name in _outside(base) if name in beside]
    return tuple(Module(depth, part, "group", "outside", part, part, ()) for part in _parts(both, base.names))


def members(checkpoint: Checkpoint, group: Module) -> list[str]:
    """The parameters and other stored tensors that a group holds."""
    start = f"{group.path}."
    return [n for n in (*checkpoint.names, *checkpoint.beside) if n == group.path or n.startswith(start)]


def outside_notes(base: Checkpoint, tuned: Checkpoint) -> Iterator[str]:
    """A line for every part outside the forward pass of which one side stores a tensor that the other lacks."""
    for one, other in ((base, tuned), (tuned, base)):
        lacking = [name for name in _outside(one) if name not in other.beside]
        for part in _parts(lacking, one.names):
            n = sum(f"{name}.".startswith(f"{part}.") for name in lacking)
            yield f"{part}, outside the forward pass: {other.source} has none of {n} tensors in {one.source}, so no T"


def _outside(checkpoint: Checkpoint) -> list[str]:
    """What is stored, no parameter, and in no row of the model's architecture."""
    known = {module.parameter for module in checkpoint.architecture.others}
    groups = tuple(f"{module.path}." for module in checkpoint.architecture.groups)
    return [name for name in checkpoint.beside if name not in known and not name.startswith(groups)]


def _parts(names: Iterable[str], known: Collection[str]) -> list[str]:
    """The largest parts of the tree that hold these names and no parameter of the model."""
    inner = {place for name in known for place in _places(name)}
    return list(dict.fromkeys(next(place for place in _places(name) if place not in inner) for name in names))


def _places(name: str) -> Iterator[str]:
    segments = name.split(".")
    return (".".join(segments[:depth]) for depth in range(1, len(segments) + 1))
