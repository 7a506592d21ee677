"""The tuning vector T = θ_tuned − θ_base, lazily: a tensor is formed when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tv.atomic import replacing
from tv.checkpoint import Checkpoint, open_checkpoint
from tv.errors import CheckpointError
from tv.measure import Source
from tv.pairing import check_pair


class TuningVector:
    """A float32 tensor per parameter. Scaling, adding and negating are lazy too, and never change an operand."""

    def __init__(self, names: tuple[str, ...], read: Callable[[str], Tensor], provenance: dict[str, object]) -> None:
        self.names, self._read, self.provenance = names, read, provenance

    def __getitem__(self, name: str) -> Float[Tensor, "..."]:
        if name not in self.names:
            raise KeyError(f"no parameter {name!r} in this tuning vector")
        return self._read(name)

    def __mul__(self, scale: float) -> TuningVector:
        return TuningVector(self.names, lambda name: self._read(name) * scale, {"scale": scale, "of": self.provenance})

    __rmul__ = __mul__

    def __neg__(self) -> TuningVector:
        return self * -1.0

    def __add__(self, other: TuningVector) -> TuningVector:
        if set(self.names) != set(other.names):
            odd = sorted(set(self.names) ^ set(other.names))[0]
            raise CheckpointError(f"tuning vectors of different models: parameter {odd!r} is in one only")

        def read(name: str) -> Tensor:
            left, right = self[name], other[name]
            if left.shape != right.shape:
                shapes = f"{list(left.shape)} and {list(right.shape)}"
                raise CheckpointError(f"tuning vectors of different models: parameter {name!r} has shapes {shapes}")
            return left + right

        return TuningVector(self.names, read, {"sum": [self.provenance, other.provenance]})

    def norm(self) -> float:
        """‖T‖ over all parameters."""
        return sum(float(self[name].double().pow(2).sum()) for name in self.names) ** 0.5

    def cosine(self, other: TuningVector) -> float:
        """Signed cosine with another vector of the same model, parameter by parameter; 0 where one is zero."""
        dot = own = others = 0.0
        for name in self.names:
            left, right = self[name].double(), other[name].double()
            dot += float((left * right).sum())
            own += float(left.pow(2).sum())
            others += float(right.pow(2).sum())
        return dot / (own * others) ** 0.5 if own and others else 0.0

    def save(self, path: str | Path) -> None:
        """Write as safetensors, float32, with provenance; to a temporary name first, then renamed."""
        path = Path(path)
        metadata = {"format": "pt", "tuning_vector": json.dumps(self.provenance)}
        if not path.parent.is_dir():
            raise CheckpointError(f"{path}: cannot be written: its directory does not exist")
        with replacing(path, CheckpointError) as temporary:
            save_file({name: self[name].contiguous() for name in self.names}, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> TuningVector:
        """Open a file that `save` wrote. Raises CheckpointError where it is none."""
        try:
            with safe_open(path, framework="pt") as file:
                names, metadata = tuple(file.keys()), file.metadata() or {}
            provenance = json.loads(metadata["tuning_vector"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: not a tuning vector that `tv extract` wrote: {error}") from error

        def read(name: str) -> Tensor:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)

        return cls(names, read, provenance)


def extract(base: Source, tuned: Source) -> TuningVector:
    """T of a pair, float32; of a grown vocabulary the rows in common. Raises CheckpointError where they do not fit."""
    left, right = open_checkpoint(base), open_checkpoint(tuned)
    check_pair(left, right)

    def read(name: str) -> Tensor:
        before, after = left.tensor(name), right.tensor(name)
        rows = min(len(before), len(after))
        return after[:rows].float() - before[:rows].float()

    return TuningVector(left.names, read, {"base": _origin(left), "tuned": _origin(right)})


def _origin(checkpoint: Checkpoint) -> dict[str, object]:
    return {"source": checkpoint.source, **checkpoint.fingerprint()}
