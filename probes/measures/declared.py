"""Measures of activations that register themselves: one table, one decorated function.

A decorated function of this room, or of a package with an entry point of the group "tuning_probes", can be named in a
suite's `measure`. Its table is written, read and documented from the decorator's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from tv.columns import Column, TableForm, keys
from tv.runtime.registry import Registry

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

#: At which of the suite's places a measure is taken.
At = Literal["positions", "ledger_positions"]
#: Both models' vectors at the places → a column's values, one a place.
ComparePlaces: TypeAlias = (
    'Callable[[Float[Tensor, "places width"], Float[Tensor, "places width"]], Mapping[str, Float[Tensor, " places"]]]'
)
F = TypeVar("F", bound="ComparePlaces")


@dataclass(frozen=True)
class ActivationMeasure:
    """A table of a run, and the function that computes its columns."""

    form: TableForm
    sites: tuple[str, ...]
    at: At
    function: ComparePlaces


MEASURES: Registry[ActivationMeasure] = Registry("measurement", "probes.measures", by="activation_measure")


def activation_measure(
    name: str, rows: str, sites: Iterable[str], columns: Iterable[Column], at: At = "positions"
) -> Callable[[F], F]:
    """A decorator: the function compares both models at `sites`, for a table of this name.

    Args:
        name: Its name in a suite's `measure` and in `run[name]`.
        rows: What a row is about, in words.
        sites: Where it reads: `resid_pre gate gate_act up attn_out mlp_out head_out resid_post` and the like.
        columns: What the function returns by name, in the table's order.
        at: The places of the suite where it is measured.

    Returns:
        A decorator that returns the function unchanged. The function takes both models' vectors at the places, as the
        models computed them, and returns one value a place for each column.
    """

    def decorate(function: F) -> F:
        form = TableForm(name, rows, (*keys("tuned prompt_id pos layer site"), *columns), ("tuned", "layer"))
        MEASURES.add(name, ActivationMeasure(form, tuple(sites), at, function), function.__module__)
        return function

    return decorate
