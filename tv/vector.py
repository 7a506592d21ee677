"""The tuning vector T = θ_tuned − θ_base, lazily: a tensor is formed when it is asked for."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tv.atomic import replacing
from tv.checkpoint import Checkpoint, Source, open_checkpoint
from tv.errors import CheckpointError, first_line
from tv.pairing import check_pair


class TuningVector:
    """A float32 tensor per parameter. Scaling, adding and negating are lazy too, and never change an operand."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Tensor], provenance: dict[str, object]
    ) -> None:
        self.shapes, self._read, self.provenance = dict(shapes), read, provenance

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters it moves."""
        return tuple(self.shapes)

    def __getitem__(self, name: str) -> Float[Tensor, "..."]:
        if name not in self.shapes:
            raise KeyError(f"no parameter {name!r} in this tuning vector")
        return self._read(name)

    def __mul__(self, scale: float) -> TuningVector:
        return TuningVector(self.shapes, lambda name: self[name] * scale, {"scale": scale, "of": self.provenance})

    __rmul__ = __mul__

    def __neg__(self) -> TuningVector:
        return self * -1.0

    def __add__(self, other: TuningVector) -> TuningVector:
        """The sum. Raises CheckpointError for a vector of another model."""
        self._require_same_model(other)
        provenance: dict[str, object] = {"sum": [self.provenance, other.provenance]}
        return TuningVector(self.shapes, lambda name: self[name] + other[name], provenance)

    def norm(self) -> float:
        """‖T‖ over all parameters."""
        return sum(float(self[name].double().pow(2).sum()) for name in self.names) ** 0.5

    def cosine(self, other: TuningVector) -> float:
        """Signed cosine with another vector of the same model, parameter by parameter; 0 where one is zero.

        Raises CheckpointError for a vector of another model.
        """
        self._require_same_model(other)
        dot = own = others = 0.0
        for name in self.names:
            left, right = self[name].double(), other[name].double()
            dot += float((left * right).sum())
            own += float(left.pow(2).sum())
            others += float(right.pow(2).sum())
        return dot / (own * others) ** 0.5 if own and others else 0.0

    def save(self, path: str | Path) -> None:
        """Write as safetensors, float32, with provenance; to a temporary name first, then renamed.

        One tensor is in memory at a time. Raises CheckpointError where the disk refuses.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise CheckpointError(f"{path}: cannot be written: its directory does not exist")
        with replacing(path, CheckpointError) as temporary, open(temporary, "wb") as file:
            file.write(self._header())
            for name in self.names:
                file.write(self[name].float().contiguous().numpy().tobytes())

    def _header(self) -> bytes:
        """The safetensors header: 8 bytes of length, then JSON, padded so that the tensors are aligned."""
        entries: dict[str, object] = {
            "__metadata__": {"format": "pt", "tuning_vector": json.dumps(self.provenance)},
        }
        start = 0
        for name, shape in self.shapes.items():
            stop = start + 4 * math.prod(shape)
            entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def _require_same_model(self, other: TuningVector) -> None:
        odd = sorted(self.shapes.keys() ^ other.shapes.keys())
        if odd:
            raise CheckpointError(f"tuning vectors of different models: parameter {odd[0]!r} is in one only")
        for name, shape in self.shapes.items():
            if shape != other.shapes[name]:
                shapes = f"{list(shape)} and {list(other.shapes[name])}"
                raise CheckpointError(f"tuning vectors of different models: parameter {name!r} has shapes {shapes}")

    @classmethod
    def load(cls, path: str | Path) -> TuningVector:
        """Open a file that `save` wrote. Raises CheckpointError where it is none."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            provenance = json.loads(metadata["tuning_vector"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a tuning vector that `tv extract` wrote: {first_line(error)}"
            ) from error

        def read(name: str) -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return cls(shapes, read, provenance)


def extract(base: Source, tuned: Source) -> TuningVector:
    """T of a pair, float32; of a grown vocabulary the rows in common. Raises CheckpointError where they do not fit."""
    left, right = open_checkpoint(base), open_checkpoint(tuned)
    check_pair(left, right)

    shapes = {name: _common(left.info(name).shape, right.info(name).shape) for name in left.names}

    def read(name: str) -> Tensor:
        before, after = (checkpoint.tensor(name) for checkpoint in (left, right))
        if shapes[name]:
            before, after = before[: shapes[name][0]], after[: shapes[name][0]]
        return after.float() - before.float()

    return TuningVector(shapes, read, {"base": _origin(left), "tuned": _origin(right)})


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the rows that both have."""
    return (min(left[0], right[0]), *left[1:]) if left else left


def _origin(checkpoint: Checkpoint) -> dict[str, object]:
    return {"source": checkpoint.source, **checkpoint.fingerprint()}
