"""The stored tensors of a quantised checkpoint, and a weight that several of them make up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxtyping import Float
from torch import Tensor

from tv.checkpoints.tensors import Stored
from tv.errors import CheckpointError, first_line
from tv.runtime.memory import RELIEF, require_memory

ADVICE = "dequantise the checkpoint and save it as bfloat16 or float32"


@dataclass(frozen=True)
class Quantised:
    """A weight that is stored in parts. Its readers take it for one stored tensor."""

    name: str  # of the weight, as it would be without quantisation
    shape: tuple[int, ...]  # of the weight
    dtype: str  # a word of tv/checkpoints/noise.py: GPTQ4, NF4, F8_E4M3, …
    parts: Mapping[str, Stored]
    values: Callable[[Mapping[str, Tensor]], Float[Tensor, "..."]]  # of the parts, or of one expert's entry of each

    def load(self, index: int = -1) -> Float[Tensor, "..."]:
        """The weight, float32; with `index` ≥ 0 only that entry of its first dimension.

        Raises CheckpointError where a part cannot be read, or the parts contradict each other.
        """
        stacked = index >= 0 and len(self.shape) > 2  # parts with an entry an expert are read at that entry
        entry = {key: index if stacked and part.shape[:1] == self.shape[:1] else -1 for key, part in self.parts.items()}
        loaded = {key: part.load(entry[key]) for key, part in self.parts.items()}
        try:
            value = self.values(loaded)
        except (RuntimeError, IndexError, ValueError) as error:
            file = next(iter(self.parts.values())).file
            require_memory(error, f"{file}: dequantising {self.name!r}", RELIEF)
            raise CheckpointError(
                f"{file}: tensor {self.name!r} is quantised, and its parts contradict each other: "
                f"{first_line(error)}; download it again"
            ) from error
        return value if stacked or index < 0 else value[index]

    def sample(self) -> bytes:
        """The ends of the bytes of every part, for a fingerprint."""
        return b"".join(part.sample() for part in self.parts.values())


class Files:
    """The tensors of a quantised checkpoint by their names in the files. What a format has taken is a part."""

    def __init__(self, source: str, stored: Mapping[str, Stored], declared: Mapping[str, Any]) -> None:
        self.source, self.stored, self.declared = source, stored, declared
        self._taken: set[str] = set()

    @property
    def rest(self) -> dict[str, Stored]:
        """The tensors that are no part of another."""
        return {name: stored for name, stored in self.stored.items() if name not in self._taken}

    def modules(self, part: str) -> Iterator[str]:
        """Names of the modules that have this part (`qweight`), as far as it is not taken."""
        for name in self.stored:
            if name.endswith(f".{part}") and name not in self._taken:
                yield name.removesuffix(f".{part}")

    def take(self, name: str, *dtypes: str) -> Stored:
        """A part, of one of these dtypes. Raises CheckpointError where it is missing or of another dtype."""
        part = self.find(name)
        if part is None:
            self.refuse(f"tensor {name!r} is missing, a part of a quantised weight", "download it again")
        if dtypes and part.dtype not in dtypes:
            self.refuse(f"tensor {name!r} is stored as {part.dtype}, not as {' or '.join(dtypes)}")
        return part

    def find(self, name: str) -> Stored | None:
        """A part, or None where it is not stored."""
        if name in self.stored:
            self._taken.add(name)
        return self.stored.get(name)

    def require_shape(self, part: Stored, shape: tuple[int, ...]) -> None:
        """Raises CheckpointError where a part has another shape than the declaration and the other parts ask for."""
        if part.shape != shape:
            self.refuse(
                f"tensor {part.name!r} has shape {list(part.shape)}, where its declaration ({self.settings}) and the "
                f"parts beside it ask for {list(shape)}",
                "the two do not belong together",
            )

    @property
    def settings(self) -> str:
        """The method and what numbers it declares, for a message."""
        named = ("bits", "group_size", "weight_block_size", "quant_algo", "format")
        given = [f"{key} {self.declared[key]}" for key in named if self.declared.get(key) is not None]
        return ", ".join([str(self.declared.get("quant_method")), *given])

    def refuse(self, what: str, advice: str = ADVICE) -> NoReturn:
        """Raises CheckpointError: the source, what is wrong, what to do."""
        raise CheckpointError(f"{self.source}: {what}; {advice}")
