"""What rules can decide, before a run: the smallest effect that each would detect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from probes.gating.estimates import Average, Estimate, Rank, Scored, moved_share
from probes.gating.judging import LEVEL
from probes.gating.rule import Ahead, Expected, RuleError, one_of
from probes.gating.rule_file import RuleSource, Written, load_rules
from probes.gating.subject import sides_of
from probes.gating.verdicts import allowed, asked_of, read
from probes.store.run import Run
from tv.stats.means import FEWEST

_COLUMNS = ["name", "tuned", "n", "prompts", "unit", "matters", "detectable", "reachable", "note"]
POWER = 0.8
_SUITES = (".yaml", ".yml")


def gate_plan(source: str | Path | Run | Sequence[str | Path | Run], rules: RuleSource) -> pd.DataFrame:
    """What rules would be able to decide.

    Args:
        source: A suite's YAML file, before its run; or finished runs, whose spread over prompts is then known.
        rules: A YAML file of rules, or the same as a list.

    Returns:
        A row per rule and tuned model: `n` units (prompts, clusters, or draws) of `prompts`; `detectable`, how far from
        its bound the truth must lie for a verdict in 80 % of runs, all rules being corrected for, in `unit`; `matters`,
        the bound; `reachable`, whether a tuning that changes nothing would pass that often, null where that does not
        apply. Before a run the spread of means is unknown: `detectable` is null, and `note` says up to which
        standard deviation between units the bound is reachable.

    Raises:
        RuleError: A mistake in the rules, or a domain, metric or table that will not be there.

    Examples:
        >>> ahead = probes.gate_plan("data/suites/demo.yaml", [{"kl": {"domain": "general", "at_most": 0.1}}])
        >>> ahead[["tuned", "n", "prompts"]].to_numpy().tolist()
        [['medical', 22, 48], ['math', 22, 48]]
    """
    written = load_rules(rules)
    if isinstance(source, str | Path) and Path(source).suffix in _SUITES:
        return _before(written, _expected(Path(source)))
    sides = sides_of([source] if isinstance(source, str | Path | Run) else source)
    asked = asked_of(written, sides)
    readings = [read(one, sides) for one in asked]
    family = sum(any(reading.number.sampled) for reading in readings)
    rows = []
    for one, reading in zip(asked, readings, strict=True):
        number, rule = reading.number, one.written.rule
        detectable, note = _detectable(number, family)
        if isinstance(number, Rank):
            note = _of_draws(number.draws, reading.bound.at_most or LEVEL, family)
        matters = _size(reading.bound.at_most, reading.bound.at_least)
        known = rule.from_zero and not math.isnan(detectable)
        rows.append(
            {
                "name": one.name or f"{reading.what} {allowed(reading.bound)}",
                "tuned": one.side.label,
                "n": number.n,
                "prompts": reading.prompts,
                "unit": reading.unit,
                "matters": matters,
                "detectable": detectable,
                "reachable": detectable <= matters if known else None,
                "note": reading.cannot_tell or note,
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _before(written: Sequence[Written], expected: Expected) -> pd.DataFrame:
    """The plan of a suite."""
    ahead: list[tuple[Written, str, Ahead]] = []
    for one in written:
        if one.rule.tuned is not None:
            one_of(one.rule.tuned, expected.tuned, "tuned model", one.place)
        against = getattr(one.rule, "against", "base")
        if against != "base":
            one_of(against, ["base", *expected.tuned], "tuned model", one.place)
        for name in expected.tuned if one.rule.tuned is None else [one.rule.tuned]:
            try:
                ahead += [(one, name, one.rule.ahead(expected))] if name != against else []
            except RuleError as error:
                raise RuleError(f"{one.place}: {one.rule.kind}: {error}") from None
    family = sum(known.kind != "exact" for _, _, known in ahead)
    return pd.DataFrame([_row(*one, family) for one in ahead], columns=_COLUMNS)


def _row(written: Written, tuned: str, known: Ahead, family: int) -> dict[str, Any]:
    detectable, note, reachable = math.nan, known.wants, None
    if known.kind in ("mean", "share") and known.n < FEWEST:
        note, reachable = _too_few(known.n), False
    elif known.kind == "mean":
        most = known.matters / _deviations(known.n, LEVEL / family)
        note = f"the spread is not known yet; sees {_deviations(known.n, LEVEL / family):.2g} sd of values without skew"
        if written.rule.from_zero and known.matters:
            note += f", so that the bound is reachable where prompts or clusters vary by an sd below {most:.2g}"
    elif known.kind == "share":
        still = np.zeros(known.n)
        detectable, _ = _detectable(moved_share(still, still, None), family)
        reachable = detectable <= known.matters if written.rule.from_zero else None
        note = "where no prompt turns; more is needed where some do"
    elif known.kind == "rank":
        note = _of_draws(known.n, known.matters, family)
    elif not note:
        note = "exact: it passes or fails"
    return {
        "name": written.name or f"{known.what} {_words(written.rule.bound_name)} {known.matters:g}",
        "tuned": tuned,
        "n": known.n,
        "prompts": known.prompts,
        "unit": known.unit,
        "matters": known.matters,
        "detectable": detectable,
        "reachable": reachable,
        "note": note,
    }


def _words(bound_name: str) -> str:
    if bound_name == "changes_by_at_most":
        return "at most, either way,"
    return "at least" if bound_name.endswith("at_least") else "at most"


def _detectable(number: Estimate, family: int) -> tuple[float, str]:
    """How far from its bound a number must lie for a verdict at this power, or why that is unknown."""
    if not isinstance(number, Average | Scored):
        return math.nan, "" if isinstance(number, Rank) else "exact: it passes or fails"
    if number.n < FEWEST:
        return math.nan, _too_few(number.n)
    alpha = LEVEL / family
    half = max(number.upper(alpha) - number.value, number.value - number.lower(alpha))
    quantile = stats.t.ppf(1 - alpha, number.n - 1)
    return float(half * (1 + stats.t.ppf(POWER, number.n - 1) / quantile)), ""


def _deviations(n: int, alpha: float) -> float:
    """The smallest mean that n units show at this level with the power, in standard deviations between units.

    Two ends are looked at, Student's and that for skewness: what the wider one costs was measured on normal values
    (`tv.stats.means.detectable`).
    """
    wider = 1 + (5 / n) ** 2
    return float(wider * (stats.t.ppf(1 - alpha, n - 1) + stats.t.ppf(POWER, n - 1)) / math.sqrt(n))


def _of_draws(draws: int, most: float, family: int) -> str:
    alone, beside = (math.ceil(rules / most) - 1 for rules in (1, family))
    need = f"needs {alone} draws where every other rule passes, {beside} where none does"
    return f"{need}; there are {draws}" if draws < beside else need


def _too_few(n: int) -> str:
    return f"cannot tell: {n} prompts or clusters, and no interval is trusted below {FEWEST}"


def _size(at_most: float | None, at_least: float | None) -> float:
    return abs(at_most if at_most is not None else at_least or 0.0)


def _expected(path: Path) -> Expected:
    """A suite and its prompts, as rules ask for them."""
    from probes.suite import load_suite
    from tv.prompts.files import read_prompts

    suite = load_suite(path)
    prompts = read_prompts(suite.prompts)
    rows = [
        {"domain": one.domain, "unit": one.cluster or one.id, "target": one.target or "", "foil": one.foil or ""}
        for one in prompts
    ]
    return Expected(
        str(path),
        tuple(suite.tuned),
        suite.measure,
        suite.attribute.model_dump() if suite.attribute else None,
        suite.discover.model_dump() if suite.discover else None,
        pd.DataFrame(rows, columns=["domain", "unit", "target", "foil"]),
    )
