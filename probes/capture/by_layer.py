"""What follows from a pair's weights, made of each layer when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class ByLayer(Mapping[Key, Value]):
    """Values of one layer at a time, for a pair whose weights are in memory one layer at a time.

    Args:
        keys: All keys.
        make: A key's value.
        layer_of: A key's layer. Values of another layer go when one of this layer is asked for.

    Examples:
        >>> squares = ByLayer([2, 3], lambda n: n * n, layer_of=lambda n: n)
        >>> squares[3], list(squares), squares.get(5)
        (9, [2, 3], None)
    """

    def __init__(self, keys: Collection[Key], make: Callable[[Key], Value], *, layer_of: Callable[[Key], int]) -> None:
        self._keys, self._make, self._layer_of = dict.fromkeys(keys), make, layer_of
        self._made: dict[Key, Value] = {}
        self._layer: int | None = None

    def __getitem__(self, key: Key) -> Value:
        if key not in self._keys:
            raise KeyError(key)
        if self._layer != self._layer_of(key):
            self._made, self._layer = {}, self._layer_of(key)
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
