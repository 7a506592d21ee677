"""The registry of attribution methods: one decorator declares each where it is defined.

Suite, Python, the command line, the run's tables, the link and the report read their lists of methods here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic.fields import FieldInfo

from tv.runtime.options import options_of
from tv.runtime.registry import Registry

Function = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Cost:
    """Forward passes per prompt of the metric, of either model."""

    forwards: int
    backwards: int = 0  # so many of the forwards have a backward pass, which takes about two more
    most: int | None = None  # forwards at most, where it may go on


@dataclass(frozen=True)
class AttributionMethod:
    """A registered method, and what others need to know before it runs."""

    name: str
    run: Function  # (work, units, options by keyword) → Effects, Rows and Checks
    words: str  # what figures call its effects: "graft effect"
    explains: str  # what it does, for a reader of the report: a sentence
    granularities: tuple[str, ...] = ()  # it runs once for each chosen one; empty: once, without units
    tables: tuple[str, ...] = ()  # that it gives besides effects
    effects: bool = True  # whether it gives units effects
    labels: Mapping[str, str] = field(default_factory=dict)  # other values of the column `method`, in words
    link: bool = False  # whether `link` has its effects as columns
    float32: bool = False  # whether it needs float32
    streams: bool = False  # whether one layer of both models at a time does for it
    order: int = 90  # of running and of rows; methods of one ten take turns, granularity by granularity
    require: Callable[..., None] | None = None  # raises ValueError where its options contradict each other
    cost: Callable[..., Cost] | None = None  # (architecture, units, settings) → what it costs; None: nobody says

    @property
    def options(self) -> dict[str, FieldInfo]:
        """Its options by name, from its signature."""
        return options_of(self.run)

    def chosen(self, settings: Any) -> dict[str, Any]:
        """Its options with the values of the attributes of `settings`."""
        return {name: getattr(settings, name) for name in self.options}

    def costs(self, architecture: Any, units: Any, settings: Any) -> Cost | None:
        """What it costs on these units with a suite's attribution settings; None where it does not say."""
        return None if self.cost is None else self.cost(architecture, units, settings)


METHODS: Registry[AttributionMethod] = Registry(
    "attribution method",
    "probes.attribution.declared",
    "probes.attribution.methods",
    "probes.directions.declared",
    by="attribution_method",
)


def attribution_method(name: str, **said: Any) -> Callable[[Function], Function]:
    """A decorator: the function becomes the attribution method of this name.

    Args:
        name: Its name in the suite, `--method` and the column `method`.
        said: The fields of `AttributionMethod`; `words` and `explains` are needed.

    Returns:
        A decorator that returns the function unchanged. The function takes (work, units) and its options as keywords
        with defaults, and yields `Effects`, `Rows` of its tables, and `Check`s.

    Examples:
        >>> METHODS["shapley"].words, list(METHODS["shapley"].options)
        ('Shapley effect', ['orders'])
    """

    def decorate(run: Function) -> Function:
        METHODS.add(name, AttributionMethod(name, run, **said), run.__module__)
        return run

    return decorate


def all_methods() -> list[AttributionMethod]:
    """Every method, in the order in which they run."""
    return sorted(METHODS.values(), key=lambda method: method.order)


def all_options() -> dict[str, FieldInfo]:
    """The options of all methods by name: one name means one thing.

    Raises:
        ValueError: Two methods declare an option of one name differently.
    """
    options: dict[str, FieldInfo] = {}
    for method in all_methods():
        for name, option in method.options.items():
            if repr(options.setdefault(name, option)) != repr(option):
                raise ValueError(f"attribution method {method.name!r}: another declares option {name!r} differently")
    return options


def linked_methods() -> tuple[str, ...]:
    """The methods whose effects are columns of `link`, in order."""
    return tuple(method.name for method in all_methods() if method.link)


def tables_of_methods() -> tuple[str, ...]:
    """The tables that methods give besides effects, in order."""
    return tuple(dict.fromkeys(table for method in all_methods() for table in method.tables))


def words_of(label: str) -> str:
    """What figures call the effects of one value of the column `method`.

    Examples:
        >>> words_of("graft"), words_of("mean")
        ('graft effect', 'mean of graft and revert')
    """
    for method in all_methods():
        if label == method.name:
            return method.words
        if label in method.labels:
            return method.labels[label]
    return label
