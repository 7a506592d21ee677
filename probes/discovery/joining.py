"""What several processes found from one start, each under its own sides, as one would have found it under all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

_NOTHING = object()


def joined(start: Any, ends: Sequence[Any]) -> Any:
    """One value of what became of another in several places, their additions in the order given.

    Dictionaries have what any of them added and none took out; lists what each added, one behind the other; of anything
    else one place alone may have made something new. So a part keeps what it finds under a side by the side, or in a
    list.

    Args:
        start: What they began with: plain values, arrays, tables and dataclasses, as a discovery keeps them.
        ends: What each has made of it.

    Raises:
        TypeError: Two have changed a value in different ways.

    Examples:
        >>> joined({"a": [1], "b": 2}, [{"a": [1, 3], "b": 2}, {"a": [1, 4], "b": 2, "c": 5}])
        {'a': [1, 3, 4], 'b': 2, 'c': 5}
    """
    made = [end for end in ends if start is _NOTHING or not _alike(end, start)]
    if not made:
        return start
    first = made[0]
    if isinstance(first, dict):
        begun = {} if start is _NOTHING else start
        gone = {key for end in made for key in begun if key not in end}
        keys = dict.fromkeys(key for one in (begun, *made) for key in one if key not in gone)
        return {key: joined(begun.get(key, _NOTHING), [end[key] for end in made if key in end]) for key in keys}
    if isinstance(first, list):
        before = [] if start is _NOTHING else start
        return [*before, *(one for end in made for one in end[len(before) :])]
    if is_dataclass(first) and not isinstance(first, type) and start is not _NOTHING:
        whole = object.__new__(type(first))
        for one in fields(first):
            value = joined(getattr(start, one.name), [getattr(end, one.name) for end in made])
            object.__setattr__(whole, one.name, value)
        return whole
    if not all(_alike(first, other) for other in made[1:]):
        raise TypeError(f"several processes have made a {type(first).__qualname__} of one, each another")
    return first


def _alike(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    if is_dataclass(one) and not isinstance(one, type):
        return all(_alike(getattr(one, of.name), getattr(other, of.name)) for of in fields(one))
    return bool(one == other or (one != one and other != other))
