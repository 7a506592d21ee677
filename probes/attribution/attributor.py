"""An attribution from end to end: every requested method on one pair, with its checks, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pandas as pd

from probes.attribution.agreement import agreement, sampled
from probes.attribution.checks import Check, Untouched
from probes.attribution.curves import curves, rankings_of
from probes.attribution.divergence import parted
from probes.attribution.effects import Effects, both_ways, floor_of, summarise, units_in
from probes.attribution.endpoints import endpoints
from probes.attribution.finding import Finding
from probes.attribution.forwards import Variant
from probes.attribution.known import Known
from probes.attribution.last_block import shortened
from probes.attribution.metric import answerable, metric_of
from probes.attribution.reading import PROVED
from probes.attribution.units import WHOLE, Granularity, Unit, components, pieces, units_of
from probes.attribution.work import Bases, Progress, Rows, Work
from probes.capture.pair import Pair
from probes.errors import NothingMoved, RunError
from probes.methods import METHODS, AttributionMethod, all_methods, tables_of_methods
from probes.store.schemas import ALL_DOMAINS
from probes.suite import Attribution
from tv.architecture.anatomy import Architecture
from tv.checkpoints.streamed import is_streamed, stored_values
from tv.prompts.encoding import Encoded, batches
from tv.runtime.common_rows import common_rows
from tv.runtime.scheduler import Team
from tv.runtime.seeds import seed_of

Tables = dict[str, pd.DataFrame]
#: Rankings that are not attributions: one number per component, by name.
Scores = Mapping[str, Mapping[Unit, float]]
#: The tables that an attribution may give, whatever its methods.
_COMMON = ("effects", "prompt_effects", "curves", "areas", "agreement", "sampled", "checks")


def attribution_tables() -> set[str]:
    """Every table that an attribution may give: those of all methods, and those made from their effects."""
    return {*_COMMON, *tables_of_methods()}


def require_precision(wanted: Attribution, dtype: str) -> None:
    """Raise RunError where a method cannot be computed in `dtype`."""
    needs = next((name for name in wanted.methods if METHODS[name].float32), None)
    if needs is not None and dtype != "float32":
        raise RunError(
            f"{needs} needs float32, not {dtype}; leave out --dtype, or set attribute: {{methods: [graft, revert]}}"
        )


def steps(
    wanted: Attribution, architecture: Architecture
) -> Iterator[tuple[list[AttributionMethod], Granularity | Literal[""], list[Unit]]]:
    """What an attribution runs in turn: methods, and the granularity and the units that they are given.

    Methods whose orders share a ten take turns, granularity by granularity. Those without granularities, "", make their
    units themselves.
    """
    asked = [method for method in all_methods() if method.name in wanted.methods]
    for _, family in groupby(asked, key=lambda method: method.order // 10):
        members = list(family)
        if alone := [method for method in members if not method.granularities]:
            yield alone, "", []
        every: tuple[Granularity, ...] = (*wanted.granularity, "all")
        for granularity in every:
            able = [method for method in members if granularity in method.granularities]
            units = ([WHOLE] if granularity == "all" else units_of(architecture, granularity)) if able else []
            if units:
                yield able, granularity, units


class Attributor:
    """One pair, prompts and metric; `tables` runs the requested methods."""

    def __init__(
        self,
        pair: Pair,
        encoded: Sequence[Encoded],
        wanted: Attribution,
        *,
        batch_size: int,
        seed: int,
        floors: Mapping[str, float] | None = None,
        known: Known | None = None,
        finding: Finding | None = None,
    ) -> None:
        """`floors` are the metric's noise floors by domain; `known` keeps what is computed.

        `finding` is what the metric reads where it is one of a discovery.

        Raises RunError if no prompt has what the metric needs.
        """
        usable = answerable(encoded, wanted.metric)
        if wanted.metric == "first_divergence":
            usable = parted(pair, usable, batch_size)
        known = Known() if known is None else known
        groups = ([item for item in usable if (item.prompt.id in known.earlier) == old] for old in (True, False))
        several = [batch for group in groups for batch in batches(group, _many(pair, batch_size), pair.pad_id)]
        self.wanted = wanted
        (few,) = batches(usable[:PROVED], PROVED, pair.pad_id)
        self.work = Work(
            pair,
            shortened(metric_of(wanted.metric, pair.tuned, several, finding), pair, few),
            several,
            batch_size,
            seed,
            granularity=wanted.granularity,
            controls=wanted.controls,
            floors=floors or {},
            known=known,
        )

    def tables(
        self,
        *,
        bootstrap: int,
        bases: Callable[[], Bases],
        scores: Scores,
        team: Team | None = None,
        progress: Progress | None = None,
    ) -> Tables:
        """Run every requested method.

        Args:
            bootstrap: Draws for each interval that has no formula.
            bases: Makes the pretrained subspaces that `split` needs.
            scores: Other rankings of the components that get curves too.
            team: Workers that do the methods' tasks, see `probes.attribution.elsewhere`.
            progress: Called at each step.

        Returns:
            `prompt_effects effects checks agreement`, `curves areas` where wanted, and the tables that methods declare.
        """
        work = replace(self.work, make_bases=bases, team=team, progress=progress, tables={}, measured=[])
        untouched = Untouched(work.pair)
        checks, effects = endpoints(work), work.measured
        for result in self._results(work):
            if isinstance(result, Check):
                checks.append(result)
            elif isinstance(result, Rows):
                work.tables[result.table] = result.rows.assign(metric=work.metric.name)
            elif result.units:
                effects.append(result)
        if not effects:
            methods = ", ".join(self.wanted.methods)
            raise NothingMoved(
                f"{methods}: nothing to move; no part of the change is expected to reach {self.wanted.metric}"
            )
        tables = dict(work.tables)
        metric = work.metric.name
        whole = [each.over(work.prompts, floor_of(work.floors, ALL_DOMAINS)) for each in effects]
        tables["prompt_effects"] = pd.concat([each.frame(metric) for each in whole], ignore_index=True)
        options: dict[str, Any] = {"seed": work.seed, "clusters": work.clusters, "floors": work.floors}
        tables["effects"] = summarise(effects, metric, work.domains, **options)
        tables["agreement"] = agreement(effects, metric, work.domains, draws=bootstrap, **options)
        if any(each.left_out for each in effects):
            tables["sampled"] = sampled(effects, metric, work.domains, draws=bootstrap, **options)
        if self.wanted.curves:
            tables |= self._curves(work, tables["effects"], scores)
        checks.append(untouched.check())
        tables["checks"] = pd.DataFrame([check.row(metric) for check in checks])
        return tables

    def _results(self, work: Work) -> Iterator[Effects | Rows | Check]:
        """The methods' results, in order, with what graft and revert give together."""
        for methods, granularity, units in steps(self.wanted, work.pair.architecture):
            named = work.named(granularity)
            results = (each for method in methods for each in self._run(method, named, units))
            if not granularity:
                yield from results
                continue
            measured = list(results)
            yield from measured
            yield from both_ways([each for each in measured if isinstance(each, Effects)])

    def _run(self, method: AttributionMethod, work: Work, units: Sequence[Unit]) -> Iterator[Effects | Rows | Check]:
        named = work.named(f"{method.name} {work.label}".strip())
        yield from method.run(named, units, **method.chosen(self.wanted))

    def _curves(self, work: Work, effects: pd.DataFrame, scores: Scores) -> Tables:
        units = components(work.pair.architecture)
        rankings = rankings_of({**_scores(work, effects), "norm": _norms(work.pair, units), **scores}, units)
        size = _many(work.pair, work.batch_size)
        drawn = batches(_drawn(work, self.wanted.curve_prompts), size, work.pair.pad_id)
        on_these = work.named("curves").on(drawn)
        moved = curves(on_these, rankings, units, draws=self.wanted.curve_draws, points=self.wanted.curve_points)
        points = work.means(moved.points, ["ranking", "draw", "direction", "n"])
        return {
            name: rows.assign(metric=work.metric.name) for name, rows in (("curves", points), ("areas", moved.areas))
        }


def _many(pair: Pair, batch_size: int) -> int:
    """Prompts of a forward of which one number each is kept; of a streamed model no more logits fit than elsewhere."""
    return batch_size if is_streamed(pair.base) else 4 * batch_size


def _drawn(work: Work, n: int) -> list[Encoded]:
    """At most `n` of the prompts, drawn by their ids: one prompt more or less changes one place."""
    drawn = sorted(work.prompts, key=lambda prompt: seed_of(f"curve {work.seed} {prompt}"))[:n]
    return [item for item in work.encoded if item.prompt.id in drawn]


def _scores(work: Work, effects: pd.DataFrame) -> dict[str, dict[Unit, float]]:
    """Every method's ranking of the components: by how far each moves the metric in the direction of fine-tuning."""
    real = (effects.granularity == "component") & (effects.domain == ALL_DOMAINS) & (effects.control == "")
    rows = effects[real & (effects.method != "synergy")]
    base, tuned = work.under([Variant("base")])[0], work.under([Variant("tuned")])[0]
    sign = float(np.sign(np.nanmean(tuned - base)))
    scores = {}
    for (method, direction), part in rows.groupby(["method", "direction"], sort=False):
        twice = rows[rows.method == method].direction.nunique() > 1
        name = f"{method} {direction}" if twice else str(method)
        scores[name] = dict(zip(units_in(part), (sign * part.effect).tolist(), strict=True))
    return scores


def _norms(pair: Pair, units: Sequence[Unit]) -> dict[Unit, float]:
    """‖T‖ of every unit."""
    before, after = (stored_values(model) for model in (pair.base, pair.tuned))

    def square(name: str) -> float:
        left, right = common_rows(before[name].detach(), after[name].detach())
        return float((right.to(left.device).float() - left.float()).square().sum())

    return {
        unit: float(sum(square(piece.parameter) for piece in pieces(pair.architecture, unit, before)) ** 0.5)
        for unit in units
    }
