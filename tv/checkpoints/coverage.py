"""Which numbers of a model are in no row of the weight tables, and how many of those differ between two models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint
from tv.errors import WARNING

_NAMED = 3  # names that the note gives


@dataclass(frozen=True)
class Coverage:
    """What the table `weights` does not show of a model.

    Attributes:
        n_parameters: Numbers in the model's parameters.
        n_unrowed: Those that are in no row.
        names: The parameters that they lie in.
        n_changed: How many of them differ between the two models; 0 of one model alone.

    Examples:
        >>> covered = tv.open_pair("data/models/base", "data/models/medical").facts.coverage
        >>> covered.n_unrowed, covered.note
        (0, '')
    """

    n_parameters: int
    n_unrowed: int
    names: tuple[str, ...]
    n_changed: int = 0

    @property
    def note(self) -> str:
        """One line for a reader; a warning where they differ; empty where there are none."""
        if not self.n_unrowed:
            return ""
        names = ", ".join(self.names[:_NAMED])
        more = f" and {len(self.names) - _NAMED} more" if len(self.names) > _NAMED else ""
        share = 100 * self.n_unrowed / max(1, self.n_parameters)
        text = f"{self.n_unrowed:,} parameters ({share:.2g} %) are in no row: {names}{more}"
        return f"{WARNING}{text}; of these {self.n_changed:,} differ between the two" if self.n_changed else text


def coverage(base: Checkpoint, tuned: Checkpoint | None = None) -> Coverage:
    """Count what is in no row. Only what is in none is read.

    Args:
        base: A model, whose architecture says what has a row.
        tuned: The model beside it, if there is one.

    Returns:
        The counts, all 0 where every parameter is a module, a bias of one, or another row.

    Raises:
        CheckpointError: A parameter cannot be read.

    Examples:
        >>> coverage(tv.open_checkpoint("data/models/base")).names
        ()
    """
    total = sum(math.prod(base.info(name).shape) for name in base.names)
    parts = _parts(base)
    free = {name: _free(base, name, *parts.get(name, ([], []))) for name in _incomplete(base)}
    unrowed, names, changed = 0, list[str](), 0
    for name, places in free.items():
        if not len(places):
            continue
        names.append(name)
        unrowed += len(places)
        if tuned is not None:
            delta = tuned.delta(name, base).flatten()
            changed += int(torch.count_nonzero(delta[places[places < len(delta)]]))
    return Coverage(total, unrowed, tuple(names), changed)


def _incomplete(checkpoint: Checkpoint) -> Iterator[str]:
    """The parameters that no row shows whole."""
    whole, groups = set[str](), list[str]()
    for module in (*checkpoint.architecture.modules, *checkpoint.architecture.others):
        if module.kind == "group":
            groups.append(module.path)
        elif not module.ranges and module.expert < 0:
            whole |= {module.parameter, f"{module.path}.bias"} if module.kind != "vector" else {module.parameter}
    starts = tuple(f"{path}." for path in groups)
    return (name for name in checkpoint.names if name not in whole and not name.startswith(starts))


def _parts(checkpoint: Checkpoint) -> dict[str, tuple[list[Module], list[Module]]]:
    """By parameter, the modules whose slices of it are rows, and those whose bias it is."""
    parts: dict[str, tuple[list[Module], list[Module]]] = {}
    for module in checkpoint.architecture.modules:
        if not module.tied:
            parts.setdefault(module.parameter, ([], []))[0].append(module)
        if module.expert < 0:
            parts.setdefault(f"{module.path}.bias", ([], []))[1].append(module)
    return parts


def _free(checkpoint: Checkpoint, name: str, slices: list[Module], biases: list[Module]) -> Int[Tensor, " n"]:
    """The places in a parameter, counted through, that no slice of it covers."""
    shape = checkpoint.info(name).shape
    one = list(shape)
    if slices and len(shape) > 1:  # a slice is whole rows, so one column stands for all of billions in a stack
        one[-2 if slices[0].transposed else -1] = 1
    index = torch.arange(math.prod(one)).reshape(one)
    free = torch.ones(index.numel(), dtype=torch.bool)
    for module in slices:
        free[module.matrix(index).flatten()] = False
    for module in biases:
        free[module.outputs(index, dim=0).flatten()] = False
    if not bool(free.any()):
        return index.new_empty(0)
    return free.reshape(one).expand(shape).flatten().nonzero().flatten()
