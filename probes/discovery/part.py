"""What a part of a discovery is given and gives, and the registry of parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pandas as pd

from probes.capture.pair import Pair
from probes.discovery.differences import Differences
from probes.discovery.observing import Observer, Texts
from probes.discovery.sides import Sides
from probes.suite import Discovery
from tv.evaluation.greedy import end_ids
from tv.runtime.registry import Registry


@dataclass(frozen=True)
class Context:
    """The pair, the texts and what is compared with the base."""

    pair: Pair
    texts: Texts
    sides: Sides
    seed: int
    amplify: tuple[str, ...] = ("*",)  # globs of parameters whose T is amplified alone

    @cached_property
    def differences(self) -> Differences:
        """Δh of the side that is seen: parts show it what they see."""
        return Differences(self.pair.tokenizer.bos_token_id)

    @cached_property
    def _made(self) -> dict[str, Any]:
        return {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What a part needs again and again and can make anew: it is no state of the part, which is kept on disk."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end a text."""
        return sorted(end_ids(self.pair.base, self.pair.tokenizer))


class Part(Observer):
    """A part: an observer of all sides that then gives tables. One that looks at none has no `see` and `close`."""

    #: Whether it is content with models whose weights are read a block at a time: it reads texts and no more.
    streams: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self.context = context

    def results(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """(table, rows), once all sides are seen."""
        raise NotImplementedError


PARTS: Registry[type[Part]] = Registry("part of a discovery", "probes.discovery.parts", by="discovery_part")


#: What is looked for where nobody says how: the parts that found a secret in the models that have one
#: (benchmarks/discovery.py), the plain lens of the literature beside its nulls, and the places where both part.
USUAL = ("token_shifts", "topics", "difference_lens", "spoken", "divergences")
ALL = "all"
#: What is amplified where nobody says what: every parameter, where the part is asked for.
EVERYWHERE = ("*",)


def parts_of(wanted: Discovery) -> tuple[str, ...]:
    """The parts that are asked for: the usual ones without any name, every one for `all`.

    Parameters that are to be amplified ask for the part that does it.

    Examples:
        >>> from probes.suite import Discovery
        >>> parts_of(Discovery(parts=("topics",), amplify=("*down*",)))
        ('topics', 'amplified')
    """
    parts = tuple(PARTS) if ALL in wanted.parts else wanted.parts or USUAL
    return tuple(dict.fromkeys((*parts, "amplified"))) if wanted.amplify != EVERYWHERE else parts


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
