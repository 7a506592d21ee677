"""An adapter over a base whose embedding and unembedding are one tensor: as it runs, they may move apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from tv.checkpoints.adapters.changes import Move
from tv.checkpoints.ties import other_names
from tv.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tv.checkpoints.checkpoint import Checkpoint


def tied_names(model: PreTrainedModel, base: Checkpoint) -> dict[str, str]:
    """Other names of parameters that the base holds once: alias → the name that the base has."""
    groups = other_names(model).items()
    return {alias: name for name, (_, *aliases) in groups for alias in aliases if alias not in base.names}


def settled(
    source: str, base: Checkpoint, moves: dict[str, Move], tied: Mapping[str, str]
) -> tuple[Checkpoint, dict[str, Move], list[str]]:
    """The base that the moves are made over, the moves by its names, and notes.

    Sides of a tie that move alike are one parameter, as in the base. Otherwise the base is taken untied: a running
    adapter moves only the side that it stands on. Raises CheckpointError where the base cannot be taken so.
    """
    notes = []
    untied = False
    for alias, owner in tied.items():
        sides = [name for name in (owner, alias) if name in moves]
        if not sides:
            continue
        if len(sides) == 2 and _alike(base, owner, moves[owner], moves[alias]):
            del moves[alias]
            if _adds_again(base, owner, moves[owner]):
                notes.append(f"{source}: T moves {owner} once, as the adapter runs; what peft merges adds it twice")
            continue
        if alias != f"{base.architecture.unembed}.weight":
            raise CheckpointError(
                f"{source}: moves {' and '.join(sides)} apart, which are one tensor in {base.source}; untie them in "
                "the base first"
            )
        untied = True
        merge = "; what peft merges moves both" if any(moves[side].change is not None for side in sides) else ""
        notes.append(
            f"{source}: the base ties {owner} and {alias}, and the adapter as it runs moves "
            f"{'them apart' if len(sides) == 2 else f'{sides[0]} alone'}: T is over the untied base{merge}"
        )
    return (base.untied() if untied else base), moves, notes


def _alike(base: Checkpoint, name: str, left: Move, right: Move) -> bool:
    """Whether two moves of one parameter are the same."""
    if left.whole is not None and right.whole is not None and left.whole.shape != right.whole.shape:
        return False
    one, other = (move.step(partial(base.read, name)) for move in (left, right))
    return bool(torch.allclose(one, other, rtol=1e-5, atol=1e-6 * float(one.abs().max())))


def _adds_again(base: Checkpoint, name: str, move: Move) -> bool:
    """Whether the move would change the moved parameter again, as a LoRA does and the values of tokens do not."""
    if move.change is None:
        return False
    weight = base.read(name) if move.whole is None else move.whole.load()
    step = move.change.step(lambda: weight, -1)
    again = move.change.step(lambda: weight + step, -1)
    return bool(again.abs().max() > 0.5 * step.abs().max())
