"""Rules on the numbers of runs: each passes, fails, or cannot be decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from probes.gating.estimates import Average, Estimate, Found, Rank, Scored
from probes.gating.judging import LEVEL, Bound, Judged, Verdict, judge
from probes.gating.rule import Reading, RuleError, one_of
from probes.gating.rule_file import RuleSource, Written, load_rules
from probes.gating.subject import Side, sides_of
from probes.store.run import Run
from tv.errors import InputError
from tv.stats.means import FEWEST

#: Prompts beyond which it is no help to say how many there should be.
_MANY = 100_000


@dataclass(frozen=True)
class Ruled:
    """A rule of one tuned model, what was read for it, and the verdict.

    Attributes:
        name: Its name in the file; what it says without one.
        kind: Of the rule.
        tuned: The tuned model.
        verdict: "pass", "fail" or "cannot tell".
        value: The number; NaN where nothing moved.
        lo: The lower end of the interval that the verdict reads; NaN of a number without sampling.
        hi: The upper end.
        at_most: What the number may be at most; NaN where it may be anything.
        at_least: What it is to be at least.
        unit: Of the number and the bounds.
        n: Units: prompts, clusters of them, or draws; 0 of a number without sampling.
        prompts: Prompts.
        p_pass: p of its not being within, corrected over all rules.
        p_fail: p of its not being beyond.
        because: Why, in a sentence.
    """

    name: str
    kind: str
    tuned: str
    verdict: Verdict
    value: float
    lo: float
    hi: float
    at_most: float
    at_least: float
    unit: str
    n: int
    prompts: int
    p_pass: float
    p_fail: float
    because: str


@dataclass(frozen=True)
class Gate:
    """The verdicts of a file of rules.

    Attributes:
        ruled: One for each rule and tuned model.
        runs: Paths of the runs.

    Examples:
        >>> import probes
        >>> rules = [{"behaviour": {"metric": "target_nll", "worse_by_at_most": 0.05, "tuned": "math"}}]
        >>> found = probes.gate("reports/demo", rules)
        >>> found.ruled[0].unit, found.passed == (found.verdict == "pass")
        ('nats', True)
    """

    ruled: tuple[Ruled, ...]
    runs: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Fail where any rule does, else cannot tell where any cannot, else pass."""
        verdicts = {ruled.verdict for ruled in self.ruled}
        return "fail" if "fail" in verdicts else "cannot tell" if "cannot tell" in verdicts else "pass"

    @property
    def passed(self) -> bool:
        """Whether every rule passes."""
        return self.verdict == "pass"

    def df(self) -> pd.DataFrame:
        """A row for each verdict, with the fields of `Ruled`."""
        return pd.DataFrame([vars(ruled) for ruled in self.ruled])


@dataclass(frozen=True)
class Asked:
    """A rule of one tuned model."""

    written: Written
    side: Side

    @property
    def name(self) -> str:
        return self.written.name


def gate(runs: str | Path | Run | Sequence[str | Path | Run], rules: RuleSource) -> Gate:
    """Judge runs by rules.

    Args:
        runs: A finished run or its path, or several, whose tuned models rules may compare.
        rules: A YAML file of rules, or the same as a list. A rule without `tuned` holds for every tuned model.

    Returns:
        The verdicts. Over all rules together, at most 5 % of runs that are at their bounds get any false fail, and at
        most 5 % any false pass.

    Raises:
        RuleError: A mistake in the rules, or a domain, metric or table that a run lacks; nothing is judged then.
        RunError: A path that is not a run.

    Examples:
        >>> import probes
        >>> found = probes.gate("reports/demo", [{"weights": {"modules": ["embed"], "share_of_T_at_most": 0.9}}])
        >>> found.verdict, found.df().tuned.tolist()
        ('pass', ['medical', 'math'])
    """
    written = load_rules(rules)
    sides = sides_of([runs] if isinstance(runs, str | Path | Run) else runs)
    asked = asked_of(written, sides)
    readings = [read(one, sides) for one in asked]
    judged = judge([reading.number for reading in readings], [reading.bound for reading in readings])
    ruled = [_ruled(one, reading, verdict) for one, reading, verdict in zip(asked, readings, judged, strict=True)]
    return Gate(tuple(ruled), tuple(dict.fromkeys(str(side.run.path) for side in sides.values())))


def asked_of(written: Sequence[Written], sides: dict[str, Side]) -> list[Asked]:
    """Every rule of every tuned model that it is about, each checked against the run before any is read."""
    asked = []
    for one in written:
        if one.rule.tuned is not None:
            one_of(one.rule.tuned, list(sides), "tuned model", one.place)
        for side in sides.values() if one.rule.tuned is None else [sides[one.rule.tuned]]:
            if getattr(one.rule, "against", None) == side.label:
                continue  # no model is compared with itself
            try:
                one.rule.require(side, sides)
            except InputError as error:
                raise RuleError(f"{one.place}: {one.rule.kind}: {error}") from None
            asked.append(Asked(one, side))
    if not asked:
        raise RuleError("no rule is about any tuned model; a model is not compared with itself")
    return asked


def read(asked: Asked, sides: dict[str, Side]) -> Reading:
    """What a rule is about, of its tuned model."""
    try:
        return asked.written.rule.read(asked.side, sides)
    except RuleError as error:
        raise RuleError(f"{asked.written.place}: {asked.written.rule.kind}: {error}") from None


def _ruled(asked: Asked, reading: Reading, judged: Judged) -> Ruled:
    verdict: Verdict = "cannot tell" if reading.cannot_tell else judged.verdict
    number, sampled = reading.number, any(reading.number.sampled) and not math.isnan(reading.number.value)
    bound = reading.bound
    return Ruled(
        name=asked.name or f"{reading.what} {allowed(bound)}",
        kind=asked.written.rule.kind,
        tuned=asked.side.label,
        verdict=verdict,
        value=math.nan if reading.still else number.value,
        lo=judged.lo if sampled else math.nan,
        hi=judged.hi if sampled else math.nan,
        at_most=math.nan if bound.at_most is None else bound.at_most,
        at_least=math.nan if bound.at_least is None else bound.at_least,
        unit=reading.unit,
        n=number.n,
        prompts=reading.prompts,
        p_pass=judged.p_pass,
        p_fail=judged.p_fail,
        because=_because(reading, judged, verdict),
    )


def allowed(bound: Bound) -> str:
    """What a bound allows, in words."""
    if bound.at_most is not None and bound.at_least is not None:
        return f"at most {bound.at_most:g} either way"
    return f"at most {bound.at_most:g}" if bound.at_most is not None else f"at least {bound.at_least:g}"


def _because(reading: Reading, judged: Judged, verdict: Verdict) -> str:
    """What decides, and where nothing does, what would."""
    number, bound = reading.number, reading.bound
    if reading.cannot_tell:
        return reading.cannot_tell
    if reading.still:
        return "T = 0: nothing moved"
    parts = [reading.note] if reading.note else []
    if verdict == "cannot tell":
        parts.append(_missing(number, bound, judged))
    elif bound.floor > max(bound.at_most or 0, bound.at_least or 0) > 0:
        parts.append(f"rounding alone reaches {bound.floor:.2g}")
    return "; ".join(filter(None, parts))


def _missing(number: Estimate, bound: Bound, judged: Judged) -> str:
    """Why nothing can be decided, and how many units would decide."""
    if isinstance(number, Average | Scored) and number.n < FEWEST:
        return (
            f"{number.n} prompts or clusters have it, and no interval is trusted below {FEWEST}; give at least {FEWEST}"
        )
    if isinstance(number, Found):
        return f"their q, {number.ps[0]:.2g} at best, is not small enough beside the other rules"
    if isinstance(number, Rank):
        if number.reached:
            return f"{number.reached} of {number.draws} draws reach it"
        times = judged.p_pass / number.p_below(bound.at_most or LEVEL)
        needed = math.ceil(times / (bound.at_most or LEVEL)) - 1
        return f"no draw reaches it, but beside the other rules it takes {needed} draws to tell, not {number.draws}"
    if math.isnan(judged.lo) or math.isnan(judged.hi):
        return "fewer than three prompts differ from the rest, so that there is no interval; give more prompts"
    edge = _nearest(number.value, bound)
    if bound.at_most is not None and 0 <= bound.at_most < bound.floor:
        return f"rounding alone reaches {bound.floor:.2g}: no number of prompts tells changes of that size apart"
    return _more(number, edge, judged)


def _nearest(value: float, bound: Bound) -> float:
    edges = [edge for edge in (bound.at_most, bound.at_least) if edge is not None]
    return min(edges, key=lambda edge: abs(edge - value))


def _more(number: Estimate, edge: float, judged: Judged) -> str:
    """How many units would tell, were the number what it is: the half of the interval must shrink to the distance."""
    half = judged.hi - number.value if number.value < edge else number.value - judged.lo
    apart = abs(edge - number.value)
    needed = math.ceil(number.n * (half / apart) ** 2) if apart > 0 else _MANY + 1
    there = f"the interval of {number.n} prompts or clusters contains the bound"
    if needed > _MANY:
        return f"{there}, which the number is at; more prompts hardly help"
    return f"{there}; about {max(needed, number.n + 1)} would tell if the number stays as it is"
