"""A model's parameters from the tensors in its files.

Files may name a parameter otherwise, keep each expert of a fused tensor apart, or hold it quantised, in parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tv.checkpoints.noise import ROUNDING
from tv.checkpoints.parameters import Place, TensorInfo, Tensors
from tv.checkpoints.quantised.formats import dequantised
from tv.checkpoints.quantised.parts import ADVICE, Quantised
from tv.checkpoints.tensors import Stored
from tv.checkpoints.transformers_names import Files, ModelNames
from tv.errors import CheckpointError
from tv.runtime.transformers_private import ignored_keys

#: Tensors in old files that no model needs.
_LEFT_OVER = re.compile(
    r"(rotary_emb\.inv_freq|masked_bias|\.position_ids|(attn|attention)\.bias|_scale(_inv)?|_zero_point)$"
)


@dataclass(frozen=True)
class _Parameter:
    info: TensorInfo
    experts: tuple[tuple[Stored | Quantised, ...], ...]  # of each expert, the pieces along its rows
    stacked: bool  # every expert is stored apart; otherwise one piece is the whole parameter

    def read(self, expert: int) -> Tensor:
        if not self.stacked:
            return self.experts[0][0].load(expert)
        if expert >= 0:
            parts = [piece.load() for piece in self.experts[expert]]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        first = self.read(0)
        whole = first.new_empty(self.info.shape)
        whole[0] = first
        for i in range(1, len(self.experts)):
            whole[i] = self.read(i)
        return whole

    def places(self, name: str) -> Iterator[Place]:
        """Where its values lie in the files."""
        for i, pieces in enumerate(self.experts):
            start = 0
            for piece in pieces:
                stop = start + piece.shape[0] if len(pieces) > 1 else 0
                rows = (start, stop) if len(pieces) > 1 else None
                yield Place(piece.name, name, i if self.stacked else -1, rows)
                start = stop


class FileTensors(Tensors):
    """The parameters of `model` (a skeleton) from the tensors of its files, each read on demand.

    `quantisation` is what the checkpoint declares of it. Raises CheckpointError where the tensors are not weights of
    this model's shapes: quantised otherwise than declared, or of another model.
    """

    def __init__(
        self, source: str, tensors: Mapping[str, Stored], model: PreTrainedModel, quantisation: Mapping[str, object]
    ) -> None:
        self._source, self._quantisation = source, quantisation
        self._parameters: dict[str, _Parameter] = {}
        self.unreadable: dict[str, str] = {}
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        known = model.state_dict().keys()
        tied = dict(model.named_parameters(remove_duplicate=False)).keys()  # the other names of one tensor included
        stored = dequantised(source, tensors, quantisation)
        self._turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
        files = ModelNames(model).sort(stored)
        for name, shape in shapes.items():
            if name in files:
                self._add(name, shape, files[name], stored)
        for name in shapes:
            if quantisation and name not in self._parameters and name not in self.unreadable:
                raise CheckpointError(
                    f"{source}: tensor {name!r} is missing: the checkpoint is incomplete, or quantised otherwise than "
                    f"it declares ({quantisation.get('quant_method')}); {ADVICE}"
                )
        self.infos = {name: self._parameters[name].info for name in shapes if name in self._parameters}
        keys = [key for name in sorted(known - tied) if name in files for key in files[name].keys]
        self._buffers = {key: stored[key] for key in keys}
        unknown = [key for name in files if name not in known for key in files[name].keys]
        self.notes = tuple(self._notes([key for key in unknown if not _is_left_over(key, model)], model))

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        return self._parameters[name].read(expert)

    def sample(self, name: str) -> bytes:
        pieces = [piece for pieces in self._parameters[name].experts for piece in pieces]
        return b"".join(piece.sample() for piece in pieces)

    def places(self) -> list[Place]:
        return [place for name, parameter in self._parameters.items() for place in parameter.places(name)]

    def buffers(self) -> dict[str, Tensor]:
        return {key: stored.load() for key, stored in self._buffers.items()}

    def _add(self, name: str, shape: tuple[int, ...], files: Files, stored: Mapping[str, Stored | Quantised]) -> None:
        if files.form:
            self.unreadable[name] = f"its files hold it in another form ({files.form})"
            return
        if not files.grid:
            raise CheckpointError(
                f"{self._source}: of the {len(files.keys)} tensors that make up {name!r} some are missing; the "
                "checkpoint is incomplete"
            )
        keys = files.grid
        experts = tuple(tuple(stored[key] for key in row) for row in keys)
        pieces = [piece for row in experts for piece in row]
        for piece in pieces:
            self._require_readable(piece, name not in self._turned)
        stored_shape = pieces[0].shape
        if files.stacked:
            rows = {sum(piece.shape[0] for piece in row) for row in experts}
            others = {piece.shape[1:] for piece in pieces}
            stored_shape = (
                (len(experts), *rows, *next(iter(others))) if len(rows) == len(others) == 1 else (len(experts),)
            )
        if stored_shape != shape:
            raise CheckpointError(
                f"{self._source}: tensor {name!r} has shape {list(stored_shape)}, but config.json says "
                f"{list(shape)}; the two do not belong together"
            )
        dtype = max((piece.dtype for piece in pieces), key=lambda dtype: ROUNDING.get(dtype, 0.0))
        self._parameters[name] = _Parameter(TensorInfo(name, shape, dtype), experts, files.stacked)

    def _require_readable(self, piece: Stored | Quantised, linear: bool) -> None:
        if piece.dtype not in ROUNDING:
            raise CheckpointError(
                f"{self._source}: tensor {piece.name!r} is stored quantised, as {piece.dtype}, which is not how its "
                f"configuration declares it ({self._quantisation.get('quant_method', 'as not quantised')}); {ADVICE}"
            )
        if isinstance(piece, Quantised) and not linear:
            raise CheckpointError(
                f"{self._source}: tensor {piece.name!r} is quantised, and its model has inputs before outputs "
                f"(Conv1D), which quantisers turn around or not; {ADVICE}"
            )

    def _notes(self, unknown: Sequence[str], model: PreTrainedModel) -> Iterable[str]:
        if unknown:
            yield (
                f"{self._source}: {len(unknown)} of its tensors ({unknown[0]!r} first) are in no module of "
                f"{type(model).__name__} as config.json describes it, and are left out"
            )
        if self.unreadable:
            name, why = next(iter(self.unreadable.items()))
            yield (
                f"{self._source}: {len(self.unreadable)} parameters are left out, {name!r} first: {why}; "
                "load the model with transformers and pass it live to measure them"
            )


def _is_left_over(key: str, model: PreTrainedModel) -> bool:
    patterns = ignored_keys(model)
    return bool(_LEFT_OVER.search(key)) or any(re.search(pattern, key) for pattern in patterns)
