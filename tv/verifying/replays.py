"""The ways in which W + ΔW is stored: which sums are formed, in which precision, and where they are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: Stored dtypes that a sum can be replayed in, the finest first, in safetensors' words.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WORDS = {dtype: str(dtype).removeprefix("torch.") for dtype in FLOATS.values()}
_COARSE = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Replay:
    """One way to add: where W, ΔW and the sum are rounded before the file's own dtype rounds.

    Attributes:
        stored: The dtype of the file.
        computed: What W is loaded and the sum formed in.
        rounds_delta: Whether ΔW is rounded to that too before it is added.
    """

    stored: torch.dtype
    computed: torch.dtype = torch.float32
    rounds_delta: bool = False

    def __str__(self) -> str:
        stored = "" if self.stored == self.computed else f", stored as {_WORDS[self.stored]}"
        if self.computed not in _COARSE:
            return f"{_WORDS[self.computed]} sum" + (f", rounded once{stored}" if stored else "")
        rounded = "ΔW rounded first" if self.rounds_delta else "ΔW in float32"
        return f"sum in {_WORDS[self.computed]}, {rounded}{stored}"

    def __call__(
        self, weight: Float[Tensor, "..."], delta: Float[Tensor, "..."] | None, scale: float = 1.0
    ) -> Float[Tensor, "..."]:
        """W + scale · ΔW as the file would hold it, in its dtype; without ΔW, W.

        `weight` as the base stores it, or float32; `delta` in float32.
        """
        wide = weight.to(torch.float64 if self.computed == torch.float64 else torch.float32)
        loaded = wide.to(self.computed).to(wide.dtype)
        if delta is None:
            return loaded.to(self.stored)
        step = delta if scale == 1 else delta * scale
        if self.rounds_delta:
            step = step.to(self.computed)
        return (loaded + step.to(wide.dtype)).to(self.computed).to(self.stored)


def replays(base: str, merged: str, *, moved: bool) -> Iterator[Replay]:
    """The ways to try for a base and a merged file of these stored dtypes, the most common first.

    `moved` says whether there is a ΔW. A base or a file of another dtype (quantised) counts as float32.
    """
    stored = FLOATS.get(merged, torch.float32)
    wide = torch.float64 if FLOATS.get(base) == stored == torch.float64 else torch.float32
    yield Replay(stored, wide)
    own = [dtype for dtype in dict.fromkeys((stored, FLOATS.get(base))) if dtype in _COARSE]
    for computed in dict.fromkeys([*own, *_COARSE]):
        assert computed is not None
        yield from (Replay(stored, computed, rounds) for rounds in ((False, True) if moved else (False,)))


def is_coarser(replay: Replay, base: str) -> bool:
    """Whether a file's values are coarser than its dtype, and were not so in the base: something rounded them."""
    sizes = [torch.finfo(dtype).eps for dtype in (replay.computed, replay.stored)]
    return sizes[0] > sizes[1] and replay.computed != FLOATS.get(base)


def spacing(value: Float[Tensor, "..."], dtype: torch.dtype) -> Float[Tensor, "..."]:
    """The distance between the numbers of `dtype` around each value, float64.

    Examples:
        >>> spacing(torch.tensor([1.0, 1.9, 2.0]), torch.bfloat16).tolist()
        [0.0078125, 0.0078125, 0.015625]
    """
    info = torch.finfo(dtype)
    least = int(torch.frexp(torch.tensor(info.tiny, dtype=torch.float64)).exponent)
    exponent = torch.frexp(value.double()).exponent.clamp(min=least)
    return torch.ldexp(torch.full(exponent.shape, info.eps, dtype=torch.float64), exponent - 1)
