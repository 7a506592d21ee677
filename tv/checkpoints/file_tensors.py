"""A model's parameters from the tensors in its files.

Files may name a parameter otherwise, or keep each expert of a fused tensor apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.layout import Files
from tv.checkpoints.leftovers import is_ignored, is_left_over
from tv.checkpoints.noise import PLAIN, ROUNDING, coarsest
from tv.checkpoints.parameters import FLOATS, Place, TensorInfo, Tensors
from tv.checkpoints.quantised.parts import ADVICE
from tv.checkpoints.tensors import Readable, Stored
from tv.checkpoints.ties import are_apart
from tv.checkpoints.tree import Tree
from tv.errors import CheckpointError, first_line


@dataclass(frozen=True)
class _Parameter:
    """A parameter whose values lie in the files as they are, whole or an expert at a time."""

    info: TensorInfo
    experts: tuple[tuple[Readable, ...], ...]  # of each expert, the pieces along its rows
    stacked: bool  # every expert is stored apart; otherwise one piece is the whole parameter

    @property
    def pieces(self) -> list[Readable]:
        return [piece for pieces in self.experts for piece in pieces]

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


@dataclass(frozen=True)
class _Made:
    """A parameter that transformers makes of stored tensors."""

    info: TensorInfo
    pieces: list[Readable]
    make: Callable[[], Mapping[str, Tensor]]  # it, and what else the same tensors make

    def read(self, expert: int) -> Tensor:
        value = self.make()[self.info.name]
        if tuple(value.shape) != self.info.shape:
            raise CheckpointError(
                f"{self.pieces[0].name!r} makes {self.info.name!r} of shape {list(value.shape)}, but "
                f"config.json says {list(self.info.shape)}; the two do not belong together"
            )
        return value if expert < 0 else value[expert]

    def places(self, name: str) -> Iterator[Place]:
        return iter(())


class FileTensors(Tensors):
    """The parameters of a model, of which `tree` is known, from the tensors of its files, each read on demand.

    `stored` has quantised weights as they are without quantisation, and `quantisation` is what the checkpoint declares
    of it. Where they hold an unembedding and an embedding that differ, its own `tree` is the untied one. Raises
    CheckpointError where the tensors are not weights of this model's shapes: not quantised as declared, or of
    another model.
    """

    def __init__(
        self, source: str, stored: Mapping[str, Readable], tree: Tree, quantisation: Mapping[str, object]
    ) -> None:
        self._source, self._quantisation = source, quantisation
        self._parameters: dict[str, _Parameter | _Made] = {}
        self._last: tuple[object, Mapping[str, Tensor]] = (None, {})  # what was made last: others of it are read next
        files = tree.sort(stored)
        apart = are_apart(tree, {name: stored[of.keys[0]] for name, of in files.items()})
        self.tree = tree = tree.untied() if apart else tree
        shapes, known, aliases = tree.parameters, set(tree.state), tree.aliases
        tied = {name for names in aliases.values() for name in names}
        self._turned = set(tree.turned)
        for name, shape in shapes.items():
            held = next((other for other in aliases[name] if other in files), None)  # a tied one under any of its names
            if held is not None:
                self._add(name, shape, files[held], stored)
        for name in shapes:
            if quantisation and name not in self._parameters:
                raise CheckpointError(
                    f"{source}: tensor {name!r} is missing: the checkpoint is incomplete, or not quantised as "
                    f"it declares ({quantisation.get('quant_method')}); {ADVICE}"
                )
        self.infos = {name: self._parameters[name].info for name in shapes if name in self._parameters}
        makers: dict[tuple[str, ...], list[str]] = {}
        for name, parameter in self._parameters.items():
            if isinstance(parameter, _Made):
                makers.setdefault(tuple(piece.name for piece in parameter.pieces), []).append(name)
        self.converted = tuple(makers.values())
        beside = {
            name if len(of.keys) == 1 else key: stored[key]
            for name, of in files.items()
            for key in of.keys
            if name not in tied and (name in known or not is_left_over(key))
        }
        self._beside = {name: tensor for name, tensor in beside.items() if tensor.dtype in ROUNDING}
        self.beside = {name: TensorInfo(name, tensor.shape, tensor.dtype) for name, tensor in self._beside.items()}
        self._buffers = {of.name: of for name, of in beside.items() if name in known and name not in self.beside}
        unused = {name: tensor.name for name, tensor in beside.items() if name not in known}
        self.outside = [name for name in unused if name in self.beside]
        outside = [unused[name] for name in self.outside]
        unread = [key for name, key in unused.items() if name not in self.beside and not is_ignored(key, tree)]
        self.notes = tuple(self._notes(tree.kind, {"outside the forward pass": outside, "left out": unread}))

    def read(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        if name in self._beside:
            return self._beside[name].load(expert)
        return self._parameters[name].read(expert)

    def rows(self, name: str, indices: Sequence[int]) -> Float[Tensor, "n ..."]:
        parameter = self._parameters.get(name)
        if parameter is None:
            return self.read(name)[list(indices)]
        if isinstance(parameter, _Made) or parameter.info.dtype not in FLOATS:
            return parameter.read(-1)[list(indices)]
        if not parameter.stacked and isinstance(whole := parameter.experts[0][0], Stored):
            return whole.entries(indices)
        return torch.stack([parameter.read(index) for index in indices])

    def sample(self, name: str) -> bytes:
        pieces = [self._beside[name]] if name in self._beside else self._parameters[name].pieces
        return b"".join(piece.sample() for piece in pieces)

    def places(self) -> list[Place]:
        places = [place for name, parameter in self._parameters.items() for place in parameter.places(name)]
        return [*places, *(Place(stored.name, name) for name, stored in self._beside.items())]

    def buffers(self) -> dict[str, Tensor]:
        return {key: stored.load() for key, stored in self._buffers.items()}

    def _add(self, name: str, shape: tuple[int, ...], files: Files, stored: Mapping[str, Readable]) -> None:
        if files.convert is not None:
            parts = [self._readable(stored[key], name) for key in files.keys]
            info = TensorInfo(name, shape, coarsest(part.dtype for part in parts))
            by_key = dict(zip(files.keys, parts, strict=True))
            self._parameters[name] = _Made(info, parts, partial(self._made, name, files, by_key))
            return
        if not files.grid:
            raise CheckpointError(
                f"{self._source}: of the {len(files.keys)} tensors that make up {name!r} some are missing; the "
                "checkpoint is incomplete"
            )
        keys = files.grid
        experts = tuple(tuple(self._readable(stored[key], name) for key in row) for row in keys)
        pieces = [piece for row in experts for piece in row]
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
        self._parameters[name] = _Parameter(
            TensorInfo(name, shape, coarsest(piece.dtype for piece in pieces)), experts, files.stacked
        )

    def _made(self, name: str, files: Files, pieces: Mapping[str, Readable]) -> Mapping[str, Tensor]:
        assert files.convert is not None
        key = tuple(files.keys)
        if self._last[0] != key:
            try:
                self._last = key, files.convert(lambda stored: pieces[stored].load())
            except CheckpointError:
                raise
            except Exception as error:  # steps of transformers on tensors of a wrong shape, or too few
                raise CheckpointError(
                    f"{self._source}: tensor {name!r} cannot be made of {files.keys[0]!r} ({files.form}): "
                    f"{first_line(error)}"
                ) from error
        return self._last[1]

    def _readable(self, piece: Readable, name: str) -> Readable:
        if piece.dtype not in ROUNDING:
            raise CheckpointError(
                f"{self._source}: tensor {piece.name!r} is stored quantised, as {piece.dtype}, which is not how its "
                f"configuration declares it ({self._quantisation.get('quant_method', 'as not quantised')}); {ADVICE}"
            )
        if piece.dtype not in PLAIN and name in self._turned:
            raise CheckpointError(
                f"{self._source}: tensor {piece.name!r} is quantised, and its model has inputs before outputs "
                f"(Conv1D), which quantisers turn around or not; {ADVICE}"
            )
        return piece

    def _notes(self, model: str, unused: Mapping[str, Sequence[str]]) -> Iterator[str]:
        for what, keys in unused.items():
            if keys:
                yield (
                    f"{self._source}: {len(keys)} of its tensors ({keys[0]!r} first) are in no module of {model} as "
                    f"config.json describes it: {what}"
                )
