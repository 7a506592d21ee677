"""What a part of a discovery is given and gives, and the registry of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from probes.capture.pair import Pair
from probes.discovery.observing import Observer, Seen, Texts
from probes.discovery.sides import Model, Side, Sides
from tv.runtime.registry import Registry

Tables = Mapping[str, pd.DataFrame]
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Context:
    """The pair, the texts and what is held against the base."""

    pair: Pair
    texts: Texts
    sides: Sides
    seed: int


class Part(Observer):
    """A part: an observer of all sides that then gives tables. One that looks at no side leaves `see` as it is."""

    #: Its tables.
    tables: tuple[str, ...] = ()

    def __init__(self, context: Context) -> None:
        self.context = context

    def see(self, side: Side, seen: Seen) -> None:
        """A batch of texts under a side."""

    def close(self, side: Side, model: Model) -> None:
        """All texts under a side are seen; its model is still there."""

    def results(self, told: Told | None = None) -> Iterator[tuple[str, pd.DataFrame]]:
        """(table, rows), once all sides are seen."""
        raise NotImplementedError


PARTS: Registry[type[Part]] = Registry("part of a discovery", "probes.discovery.parts", by="discovery_part")


def discovery_part(name: str) -> Callable[[type[Part]], type[Part]]:
    """A decorator: the class becomes the part of this name.

    Args:
        name: Its name in the suite, `--part` and the column `part`.

    Returns:
        A decorator that returns the class unchanged.

    Examples:
        >>> "token_shifts" in PARTS
        True
    """
    return PARTS.register(name)
