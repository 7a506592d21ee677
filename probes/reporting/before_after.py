"""The chart of the verdict: of every domain one metric before and after fine-tuning, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pandas as pd

from probes.reporting.words import METRICS, interval, is_share, metric_name, percent, value_form

_Form: TypeAlias = Callable[[float | None], str]


@dataclass(frozen=True)
class Mark:
    """A model's value on the chart, and its interval; both in % of the chart's width."""

    model: str
    at: float
    start: float
    width: float
    text: str


@dataclass(frozen=True)
class BeforeAfter:
    """The chart: its title, the two ends of its axis as text, and the marks of every domain."""

    title: str
    low: str
    high: str
    rows: Sequence[tuple[str, Sequence[Mark]]]


def before_after(behaviour: pd.DataFrame, choices: pd.DataFrame) -> BeforeAfter | None:
    """The first metric that both models have, by domain; without targets how often first choices differ."""
    graded = behaviour[behaviour.base.notna() & behaviour.tuned.notna()]
    if graded.empty:
        return _of_choices(choices) if len(choices) else None
    metric = next(name for name in (*METRICS, *graded.metric) if (graded.metric == name).any())
    rows, form = graded[graded.metric == metric], value_form(metric)
    ends = rows[[f"{model}{end}" for model in ("base", "tuned") for end in ("", "_lo", "_hi")]].astype(float)
    low, high = (0.0, 1.0) if is_share(metric) else (min(0.0, float(ends.min().min())), float(ends.max().max()))
    marks = [(str(row["domain"]), list(_marks(row, low, high, form))) for row in rows.to_dict("records")]
    unit = METRICS.get(metric, ("", "", None))[1]
    title = metric_name(metric) if is_share(metric) or not unit else f"{metric_name(metric)} ({unit})"
    return BeforeAfter(f"{title[0].upper()}{title[1:]}", form(low), form(high), marks)


def _marks(row: Mapping[Any, Any], low: float, high: float, form: _Form) -> Iterator[Mark]:
    for model in ("base", "tuned"):
        yield _mark(model, row[model], row[f"{model}_lo"], row[f"{model}_hi"], low, high, form)


def _mark(model: str, value: float, lo: float, hi: float, low: float, high: float, form: _Form) -> Mark:
    def place(x: float) -> float:
        return round(100 * min(1.0, max(0.0, (x - low) / (high - low or 1.0))), 2)

    start, end = (place(lo), place(hi)) if pd.notna(lo) and pd.notna(hi) else (place(value), place(value))
    return Mark(model, place(value), start, round(end - start, 2), f"{form(value)} {interval(lo, hi, form)}".rstrip())


def _of_choices(choices: pd.DataFrame) -> BeforeAfter:
    rows = [
        (str(row.domain), [_mark("tuned", row.share, row.lo, row.hi, 0.0, 1.0, percent)])
        for row in choices.itertuples()
    ]
    return BeforeAfter("Prompts after which the first choices differ", percent(0.0), percent(1.0), rows)
