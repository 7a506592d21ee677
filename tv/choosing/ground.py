"""What every choice stands on: a live base in float32, tuning vectors that move it, its parts, and prompts for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tv.architecture.resolve import resolve
from tv.architecture.values import values_of
from tv.arithmetic.variants import of_one_form
from tv.checkpoints.adapters.live import base_beside
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import LiveSource, load_model
from tv.checkpoints.opening import Source, open_checkpoint
from tv.checkpoints.own_tokenizer import encoder
from tv.checkpoints.vector import TuningVector
from tv.choosing.units import Cut, Granularity, cut
from tv.experiments.cells import identity
from tv.prompts.files import Prompt
from tv.prompts.notes import prompt_notes
from tv.runtime.compute import Compute


@dataclass(frozen=True)
class Ground:
    """A model that can be moved, and what moves it."""

    base: LiveSource  # what the model was loaded from
    checkpoint: Checkpoint
    model: PreTrainedModel  # float32, moved in place
    tokenizer: PreTrainedTokenizerBase
    vectors: tuple[TuningVector, ...]  # as the model's parameters have them
    division: Cut
    notes: tuple[str, ...]

    @property
    def key(self) -> Mapping[str, Any]:
        """What every value depends on: the weights of both sides."""
        print_ = self.checkpoint.fingerprint()
        return {"base": [print_["structure"], print_["content"]], "vectors": [identity(one) for one in self.vectors]}


def ground(
    base: LiveSource,
    tuned: Sequence[Source | TuningVector],
    prompts: Sequence[Prompt],
    granularity: Granularity,
    compute: Compute,
) -> Ground:
    """Open and load all of it. Raises InputError where the models do not belong together."""
    compute.require_float32("scales can be distinguished")
    base = base_beside(base, *tuned)
    vectors = [side if isinstance(side, TuningVector) else extract(base, side) for side in tuned]
    sides = [open_checkpoint(side, base=base) for side in tuned if not isinstance(side, TuningVector)]
    tokenizer, notes = encoder(base, sides, prompts)
    model, moved = of_one_form(_float32(base, compute), vectors)
    division = cut(resolve(model), {name: tuple(value.shape) for name, value in values_of(model).items()}, granularity)
    checkpoint = open_checkpoint(base)
    of_weights = dict.fromkeys(note for one in (checkpoint, *sides) for note in one.notes)
    told = (*of_weights, *notes, *prompt_notes(prompts, tokenizer))
    return Ground(base, checkpoint, model, tokenizer, tuple(moved), division, told)


def _float32(base: LiveSource, compute: Compute) -> PreTrainedModel:
    """A float32 model to move: a live one is copied, because its vector is read from it while the copy moves."""
    if isinstance(base, PreTrainedModel):
        return load_model(copy.deepcopy(base)).float()
    return load_model(base, device=compute.device)
