"""The tuning vector T = θ_tuned − θ_base: each tensor, or one expert of it, is formed on demand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tv.checkpoints.moved import MovedTensors
from tv.checkpoints.noise import Noise
from tv.checkpoints.parameters import Rows, TensorInfo, rows_of
from tv.checkpoints.provenance import Provenance
from tv.checkpoints.safetensors_files import header_of
from tv.checkpoints.tensors import header
from tv.errors import CheckpointError, first_line
from tv.runtime.atomic import replacing

if TYPE_CHECKING:
    from tv.checkpoints.checkpoint import Checkpoint


class TuningVector:
    """A float32 tensor per parameter. Scaling, adding and negating are lazy too, and never change an operand.

    `tv.extract` makes one of a pair, `TuningVector.load` opens a file that `save` wrote.

    Args:
        shapes: The shape of every parameter that it moves, by the parameter's name in the live model.
        read: Returns the tensor of a name. It is called at every access.
        provenance: Where the vector comes from, as JSON; `save` writes it too.
        read_expert: Returns one entry of the first dimension, by name and index; without it the whole tensor is read.
        open_rows: Returns what reads a few rows at a time, by name and expert (−1 for all); without it the whole tensor
            is read.

    Examples:
        >>> medical = tv.extract("data/models/base", "data/models/medical")
        >>> math = tv.extract("data/models/base", "data/models/math")
        >>> both = 0.7 * medical + 0.3 * math
        >>> medical.cosine(both) > math.cosine(both)
        True
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
        provenance: Mapping[str, Any],
        read_expert: Callable[[str, int], Tensor] | None = None,
        open_rows: Callable[[str, int], Rows] | None = None,
    ) -> None:
        self.shapes, self._read, self.provenance = dict(shapes), read, Provenance(provenance)
        self._read_expert, self._open_rows = read_expert, open_rows

    def untied(self, embed: str, unembed: str) -> TuningVector:
        """The same step of a model whose unembedding is a parameter of its own: it moves as the embedding does.

        Args:
            embed: The embedding's parameter.
            unembed: The unembedding's.

        Returns:
            Itself where it already moves the unembedding.

        Examples:
            >>> medical = tv.extract("data/models/base", "data/models/medical")
            >>> medical.untied("model.embed_tokens.weight", "lm_head.weight") is medical
            True
        """
        if unembed in self.shapes or embed not in self.shapes:
            return self

        def held(name: str) -> str:
            return embed if name == unembed else name

        return TuningVector(
            {**self.shapes, unembed: self.shapes[embed]},
            lambda name: self[held(name)],
            self.provenance,
            lambda name, index: self.expert(held(name), index),
            lambda name, index: self.rows(held(name), index),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters it moves."""
        return tuple(self.shapes)

    def __getitem__(self, name: str) -> Float[Tensor, "..."]:
        if name not in self.shapes:
            raise KeyError(f"no parameter {name!r} in this tuning vector")
        return self._read(name)

    def expert(self, name: str, index: int) -> Float[Tensor, "..."]:
        """One entry of the first dimension of a parameter: one expert of a fused tensor, without the others.

        Args:
            name: The parameter.
            index: The expert, from 0.

        Returns:
            The tensor without its first dimension.

        Raises:
            KeyError: There is no such parameter.
        """
        if name not in self.shapes or self._read_expert is None:
            return self[name][index]
        return self._read_expert(name, index)

    def rows(self, name: str, index: int = -1) -> Rows:
        """A parameter, or one expert of it, a few rows at a time.

        Args:
            name: The parameter.
            index: The expert, from 0; −1 for the whole parameter.

        Returns:
            A function of the first row and the row after the last, which returns these rows.

        Examples:
            >>> medical = tv.extract("data/models/base", "data/models/medical")
            >>> tuple(medical.rows("model.embed_tokens.weight")(2, 5).shape)
            (3, 160)
        """
        return self._open_rows(name, index) if self._open_rows is not None else rows_of(self._part(name, index))

    def __mul__(self, scale: float) -> TuningVector:
        return TuningVector(
            self.shapes,
            lambda name: self[name] * scale,
            self.provenance.scaled(scale),
            lambda name, index: self.expert(name, index) * scale,
        )

    __rmul__ = __mul__

    def __neg__(self) -> TuningVector:
        return self * -1.0

    def __add__(self, other: TuningVector) -> TuningVector:
        """The sum. Raises CheckpointError for a vector of another model."""
        left, right = self._beside(other)
        return TuningVector(
            left.shapes,
            lambda name: left[name] + right[name],
            self.provenance.plus(other.provenance),
            lambda name, index: left.expert(name, index) + right.expert(name, index),
        )

    def __sub__(self, other: TuningVector) -> TuningVector:
        """The difference. Raises CheckpointError for a vector of another model."""
        return self + -other

    def norm(self) -> float:
        """‖T‖ over all parameters."""
        parts = ((name, index) for name in self.names for index in self._indices(name))
        return sum(float(self._part(*part).double().pow(2).sum()) for part in parts) ** 0.5

    def cosine(self, other: TuningVector) -> float:
        """Signed cosine with another vector of the same model, a parameter at a time.

        Args:
            other: The other vector.

        Returns:
            Within [−1, 1]; 0 where one of them is zero.

        Raises:
            CheckpointError: The other is of another model.
        """
        one, two = self._beside(other)
        dot = left_sq = right_sq = 0.0
        for name in one.names:
            for index in one._indices(name):
                left, right = one._part(name, index).double(), two._part(name, index).double()
                dot += float((left * right).sum())
                left_sq += float(left.pow(2).sum())
                right_sq += float(right.pow(2).sum())
                del left, right  # before the next two are read
        return dot / (left_sq * right_sq) ** 0.5 if left_sq and right_sq else 0.0

    @property
    def base(self) -> dict[str, Any] | None:
        """The base in its provenance: source, fingerprint. None where there is none."""
        return self.provenance.base

    def noise(self, name: str) -> Noise:
        """The rounding that T inherits from the checkpoints it was taken from."""
        return self.provenance.noise(name)

    def dtype(self, name: str) -> str:
        """The coarsest dtype that the tuned sides of its provenance are stored in; F32 where it records none."""
        return self.provenance.dtype(name)

    def save(self, path: str | Path) -> None:
        """Write it as safetensors, float32, with its provenance; to a temporary name first, then renamed.

        One tensor, or one expert of it, is in memory at a time.

        Args:
            path: The file. Its directory must be there.

        Raises:
            CheckpointError: The directory does not exist, or writing fails.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise CheckpointError(f"{path}: cannot be written: its directory does not exist")
        with replacing(path, CheckpointError) as temporary, open(temporary, "wb") as file:
            file.write(self._header())
            for name in self.names:
                for index in self._indices(name):
                    file.write(self._part(name, index).float().contiguous().numpy().data)

    def _indices(self, name: str) -> range:
        """The parts that a parameter is read in: the experts of a fused tensor, or −1 for the whole."""
        shape = self.shapes[name]
        return range(shape[0]) if len(shape) > 2 else range(-1, 0)

    def _part(self, name: str, index: int) -> Float[Tensor, "..."]:
        return self[name] if index < 0 else self.expert(name, index)

    def _header(self) -> bytes:
        tensors = [(name, "F32", shape, 4 * math.prod(shape)) for name, shape in self.shapes.items()]
        return header_of(tensors, {"tuning_vector": json.dumps(self.provenance)})

    def _beside(self, other: TuningVector) -> tuple[TuningVector, TuningVector]:
        """Both, of one form: where one parts the unembedding from the embedding, each moves both.

        Raises CheckpointError for a vector of another model.
        """
        left, right = self._apart_as(other), other._apart_as(self)
        odd = sorted(left.shapes.keys() ^ right.shapes.keys())
        if odd:
            raise CheckpointError(f"tuning vectors of different models: parameter {odd[0]!r} is in one only")
        for name, shape in left.shapes.items():
            if shape != right.shapes[name]:
                shapes = f"{list(shape)} and {list(right.shapes[name])}"
                raise CheckpointError(f"tuning vectors of different models: parameter {name!r} has shapes {shapes}")
        return left, right

    def _apart_as(self, other: TuningVector) -> TuningVector:
        tied = self.provenance.tied
        return self.untied(*tied) if tied is not None and set(tied) <= other.shapes.keys() else self

    @classmethod
    def load(cls, path: str | Path) -> TuningVector:
        """Open a file that `save` wrote; tensors are read on demand.

        Args:
            path: The file.

        Returns:
            The vector, with the provenance that was written.

        Raises:
            CheckpointError: The file is not a tuning vector.
        """
        path = Path(path)
        try:
            stored = {tensor.name: tensor for tensor in header(path)}
            with safe_open(path, framework="pt") as file:
                provenance = Provenance.parse((file.metadata() or {})["tuning_vector"], stored)
        except (OSError, SafetensorError, KeyError, ValueError, CheckpointError) as error:
            raise CheckpointError(
                f"{path}: not a tuning vector that `tv extract` wrote ({first_line(error)}); pass such a file, or a "
                "checkpoint's directory"
            ) from error
        return cls(
            {name: tensor.shape for name, tensor in stored.items()},
            lambda name: stored[name].load(),
            provenance,
            lambda name, index: stored[name].load(index),
        )


class VectorTensors(MovedTensors):
    """The parameters of `base` moved by a tuning vector, T exactly as in its file.

    Raises CheckpointError where the vector is of a model with other parameters.
    """

    def __init__(self, source: str, vector: TuningVector, base: Checkpoint) -> None:
        self._vector = vector
        base = base_of(vector, base)
        _require_fit(source, vector, base)
        moved = {name: TensorInfo(name, shape, vector.dtype(name)) for name, shape in vector.shapes.items()}
        super().__init__(base, moved, tuple(self._notes(source, base)))

    def step(self, name: str, expert: int = -1) -> Float[Tensor, "..."]:
        value = self._vector[name] if expert < 0 else self._vector.expert(name, expert)
        return value.to(torch.float32, copy=True)

    def rounding(self, name: str) -> Noise:
        return self._vector.noise(name)

    def sample_step(self, name: str) -> bytes:
        flat = self._vector[name].flatten()
        return torch.cat([flat[:1024], flat[-1024:]]).numpy().tobytes()

    def _notes(self, source: str, base: Checkpoint) -> Iterator[str]:
        origin = self._vector.base
        if origin is None:
            yield f"{source}: does not say which base it was extracted from; it is applied to {base.source}"
        elif any(origin.get(part) != base.fingerprint()[part] for part in ("structure", "content")):
            yield f"{source}: was taken from {origin.get('source')}, whose fingerprint is another than {base.source}'s"


def base_of(vector: TuningVector, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint in the form that a vector moves: untied where it moves an unembedding by itself."""
    return checkpoint if vector.shapes.keys() <= set(checkpoint.values) else checkpoint.untied()


def _require_fit(source: str, vector: TuningVector, base: Checkpoint) -> None:
    odd = sorted((vector.shapes.keys() - set(base.values)) | (set(base.names) - vector.shapes.keys()))
    if odd:
        side = "only the tuning vector has" if odd[0] in vector.shapes else "the tuning vector has not"
        raise CheckpointError(f"{source}: of another model than {base.source}: {side} parameter {odd[0]!r}")
    words = base.architecture.embed, base.architecture.unembed
    for name, shape in vector.shapes.items():
        expected = base.info(name).shape
        cut = name.rpartition(".")[0] in words and shape[1:] == expected[1:] and shape[0] < expected[0]
        if shape != expected and not cut:
            raise CheckpointError(
                f"{source}: of another model than {base.source}: parameter {name!r} has shape {list(shape)}, there "
                f"{list(expected)}"
            )
