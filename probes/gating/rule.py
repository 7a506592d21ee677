"""What a rule is: keys that name a number and what it may be. Kinds register themselves, a file each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from probes.gating.estimates import Estimate
from probes.gating.judging import Bound
from probes.gating.subject import Side
from tv.errors import InputError, choices
from tv.runtime.registry import Registry


class RuleError(InputError):
    """A rule says something that cannot be judged."""


@dataclass(frozen=True)
class Reading:
    """A number that a rule is about, and what it may be.

    Attributes:
        number: The number, with its error.
        bound: What it may be.
        what: What it is, in words: "target NLL, general: worse by".
        unit: Its unit.
        prompts: How many prompts it is a mean over; 0 where it is none.
        note: What a reader should know.
        cannot_tell: Why no verdict is possible, whatever the number is.
        still: Whether nothing moved (T = 0): the number is then null, and no error.
    """

    number: Estimate
    bound: Bound
    what: str
    unit: str
    prompts: int = 0
    note: str = ""
    cannot_tell: str = ""
    still: bool = False


@dataclass(frozen=True)
class Ahead:
    """What is known of a rule before its run: how many units, and what they are. `wants` says what else it needs."""

    what: str
    unit: str
    matters: float
    n: int = 0
    prompts: int = 0
    kind: str = "exact"  # "mean", "share", "rank", "exact"
    wants: str = ""


@dataclass(frozen=True)
class Expected:
    """A suite before its run, as rules ask for it."""

    where: str
    tuned: tuple[str, ...]
    measure: tuple[str, ...]
    attribute: Mapping[str, Any] | None
    discover: Mapping[str, Any] | None
    prompts: pd.DataFrame  # a row per prompt: domain, unit, target, foil

    @property
    def domains(self) -> list[str]:
        return ["all", *dict.fromkeys(self.prompts.domain)]

    def of_domain(self, domain: str) -> pd.DataFrame:
        return self.prompts if domain == "all" else self.prompts[self.prompts.domain == domain]


class Rule(BaseModel):
    """The base of every kind: `tuned` names the model it is about; without it the rule holds for every one.

    A kind says in `bounds` which of its keys say what the number may be, of which a rule has exactly one, and in
    `shorthand` which key a plain value stands for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    kind: ClassVar[str] = ""
    bounds: ClassVar[tuple[str, ...]] = ()
    shorthand: ClassVar[str] = ""

    tuned: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, bool) and field.field_name in cls.bounds:
            raise ValueError(f"should be a number, not {value}; YAML reads yes, no, on and off as True and False")
        return value

    @model_validator(mode="after")
    def _one_bound(self) -> Rule:
        given = [name for name in self.bounds if getattr(self, name) is not None]
        if self.bounds and len(given) != 1:
            several = f"{' and '.join(given)} are one too many" if given else "it says nothing of what may be"
            raise ValueError(f"{several}; give one of {', '.join(self.bounds)}")
        return self

    @property
    def bound_name(self) -> str:
        return next((name for name in self.bounds if getattr(self, name) is not None), "")

    @property
    def from_zero(self) -> bool:
        """Whether a tuning that moves nothing lies at 0, within the bound."""
        return self.bound_name.endswith("by_at_most")

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        """Raise RuleError where the run lacks what the rule is about. Reads no more than names."""

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        """The number, of this tuned model."""
        raise NotImplementedError

    def ahead(self, expected: Expected) -> Ahead:
        """What is known before the run. Raises RuleError where the suite will not measure it."""
        raise NotImplementedError


R = TypeVar("R", bound=type[Rule])
RULES: Registry[type[Rule]] = Registry("rule", "probes.gating.rules", by="gate_rule")


def gate_rule(kind: str) -> Callable[[R], R]:
    """A decorator: the class becomes the kind of rule of this name.

    Examples:
        >>> sorted(RULES)[:3]
        ['behaviour', 'calibration', 'check']
    """

    def decorate(cls: R) -> R:
        cls.kind = kind
        RULES.add(kind, cls, cls.__module__)
        return cls

    return decorate


def one_of(name: str, there: Collection[str], what: str, where: object) -> None:
    """Raise RuleError for a name that is not among those there are, with a similar one."""
    if name not in there:
        raise RuleError(f"{where}: no {what} {name!r}{choices(name, there)}")


def require_table(side: Side, table: str, how: str) -> None:
    """Raise RuleError where the run lacks a table; `how` says what would make it."""
    if table not in side.run.tables:
        raise RuleError(f"{side.run.path}: the run has no table {table!r}; {how}")


def in_domain(domain: str) -> str:
    """How a number says which prompts it is of."""
    return "all prompts" if domain == "all" else domain
