"""Which stored tensors make up one parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

#: A stored name → its tensor.
Read: TypeAlias = Callable[[str], Tensor]


@dataclass
class Files:
    """The stored tensors that make up one parameter."""

    keys: list[str]
    grid: list[list[str]]  # of each expert, its tensors in the order of its rows; empty where one is missing
    stacked: bool = False
    form: str = ""  # the steps by which transformers makes it of them, where they are more than stacking experts
    convert: Callable[[Read], Mapping[str, Tensor]] | None = None  # these steps; they may make other parameters too
