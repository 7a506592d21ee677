"""An attribution from end to end: every method that was asked for on one pair, with its checks, as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.attribution import exact
from probes.attribution.agreement import agreement
from probes.attribution.checks import Check, Untouched, completeness, endpoints
from probes.attribution.curves import curves, rankings_of
from probes.attribution.depth import depth
from probes.attribution.divergence import parted
from probes.attribution.effects import Effects, both_ways, summarise, units_in
from probes.attribution.forwards import Told, values
from probes.attribution.gradient import gradient
from probes.attribution.metric import answerable, metric_of
from probes.attribution.patch import patch
from probes.attribution.path import path_effects
from probes.attribution.shapley import shapley
from probes.attribution.split import Bases, split
from probes.attribution.units import WHOLE, Granularity, Unit, components, pieces, units_of
from probes.capture.pair import Pair
from probes.errors import RunError
from probes.store.schemas import ALL_DOMAINS
from probes.suite import Attribution
from tv.arithmetic.controls import CONTROLS
from tv.checkpoints.extraction import extract
from tv.prompts.encoding import Encoded, batches
from tv.stats import bootstrap_mean

Tables = dict[str, pd.DataFrame]
#: Told how far a step is: (done, total, what).
Progress = Callable[[int, int, str], None]
#: Rankings that are not attributions: a number a component, by name.
Scores = Mapping[str, Mapping[Unit, float]]


def require_precision(wanted: Attribution, dtype: str) -> None:
    """Raise RunError where a method cannot be computed in `dtype`."""
    if "path" in wanted.methods and dtype != "float32":
        raise RunError(
            f"path needs float32, not {dtype}; leave out --dtype, or set attribute: {{methods: [graft, revert]}}"
        )


class Attributor:
    """One pair, prompts and metric; `tables` runs what was asked for."""

    def __init__(
        self, pair: Pair, encoded: Sequence[Encoded], wanted: Attribution, *, batch_size: int, seed: int
    ) -> None:
        """Raises RunError where the metric can be read on no prompt."""
        self.pair, self.wanted, self.seed = pair, wanted, seed
        usable = answerable(encoded, wanted.metric)
        if wanted.metric == "first_divergence":
            usable = parted(pair, usable, batch_size)
        # Several prompts a forward: nothing is kept of them but a number each.
        self.batches = batches(usable, 4 * batch_size, pair.pad_id)
        self.encoded = [item for batch in self.batches for item in batch.encoded]
        # Where activations are kept.
        self.small_batches = batches(self.encoded, batch_size, pair.pad_id)
        self.batch_size = batch_size
        self._neurons: pd.DataFrame | None = None
        self.metric = metric_of(wanted.metric, pair.tuned, self.batches)
        self.domains = {item.prompt.id: item.prompt.domain for item in self.encoded}
        self.clusters = {item.prompt.id: item.prompt.cluster or item.prompt.id for item in self.encoded}

    def tables(
        self, *, bootstrap: int, bases: Callable[[], Bases], scores: Scores, progress: Progress | None = None
    ) -> Tables:
        """`prompt_effects effects checks agreement`, and what some methods give besides.

        `bases` are the pretrained subspaces that `split` needs; `scores` other rankings of the components, which the
        curves are drawn for too.
        """
        untouched = Untouched(self.pair)
        checks = endpoints(self.pair, self.batches, self.metric)
        tables: Tables = {}
        found: list[Effects] = []
        if "path" in self.wanted.methods:
            found += self._path(tables, checks, progress)
        found += self._exact(progress)
        found += self._others(bases, progress)
        if "depth" in self.wanted.methods:
            tables["depth"] = self._depth(bootstrap, progress)
        found = [own for own in found if own.units]
        tables["prompt_effects"] = pd.concat([own.frame(self.metric.name) for own in found], ignore_index=True)
        options: dict[str, Any] = {"draws": bootstrap, "seed": self.seed, "clusters": self.clusters}
        for name, table in (("effects", summarise), ("agreement", agreement)):
            tables[name] = table(found, self.metric.name, self.domains, **options)
        if self.wanted.curves:
            tables |= self._curves(tables["effects"], scores, bootstrap, progress)
        checks.append(untouched.check())
        tables["checks"] = pd.DataFrame([check.row(self.metric.name) for check in checks])
        return tables

    def _path(self, tables: Tables, checks: list[Check], progress: Progress | None) -> list[Effects]:
        wanted = self.wanted
        found = path_effects(
            self.pair,
            self.encoded,
            self.metric,
            batch_size=self.batch_size,
            nodes=wanted.nodes,
            most_nodes=wanted.most_nodes,
            tolerance=wanted.tolerance,
            told=progress,
        )
        checks += completeness(found, self.domains, wanted.tolerance)
        labels = {"method": "path", "metric": self.metric.name}
        tables["token_effects"] = found.tokens().assign(**labels)
        self._neurons = found.neurons(self.domains)
        tables["neuron_effects"] = self._neurons.assign(**labels)
        return list(found.effects(self.pair.architecture))

    def _exact(self, progress: Progress | None) -> list[Effects]:
        effects: list[Effects] = []
        for granularity in self.wanted.granularity:
            units = self._units(granularity)
            own = [
                method(self.pair, units, self.batches, self.metric, self._told(progress, f"{name} {granularity}"))
                for name, method in (("graft", exact.graft), ("revert", exact.revert))
                if name in self.wanted.methods and units
            ]
            effects += [*own, *both_ways(own)]
        if "graft" in self.wanted.methods:
            effects += self._controls(progress)
        return effects

    def _controls(self, progress: Progress | None) -> list[Effects]:
        """The whole T, and every component, beside what other vectors of their size do."""
        effects = [exact.graft(self.pair, [WHOLE], self.batches, self.metric)]
        units = [WHOLE, *components(self.pair.architecture)]
        if not self.wanted.controls:
            return effects
        vector = extract(self.pair.base, self.pair.tuned)
        for kind in self.wanted.controls:
            told = self._told(progress, f"control {kind}")
            drawn = CONTROLS[kind](vector, self.seed)
            tensors = {name: drawn[name] for name in drawn.names}
            effects.append(exact.graft_vector(self.pair, tensors, units, self.batches, self.metric, kind, told))
        return effects

    def _others(self, bases: Callable[[], Bases], progress: Progress | None) -> list[Effects]:
        wanted = self.wanted
        effects: list[Effects] = []
        for granularity in self.wanted.granularity:
            units = units_of(self.pair.architecture, granularity) if granularity in ("component", "head") else []
            for name, method in (("patch", patch), ("gradient", gradient)):
                if name in wanted.methods and units:
                    told = self._told(progress, f"{name} {granularity}")
                    effects += method(self.pair, units, self.small_batches, self.metric, told)
        if "split" in wanted.methods:
            effects += split(
                self.pair,
                bases(),
                self.batches,
                self.metric,
                seed=self.seed,
                every_module="module" in wanted.granularity,
                told=self._told(progress, "split"),
            )
        if "shapley" in wanted.methods:
            units, told = components(self.pair.architecture), self._told(progress, "shapley")
            own = shapley(self.pair, units, self.batches, self.metric, orders=wanted.orders, seed=self.seed, told=told)
            effects.append(own)
        return effects

    def _units(self, granularity: Granularity) -> list[Unit]:
        """What is moved one by one. Of neurons, the first of path's: there are too many for all."""
        units = units_of(self.pair.architecture, granularity)
        if granularity != "neuron" or len(units) <= self.wanted.neurons:
            return units
        if self._neurons is None:
            raise RunError(
                "attribution by neuron: path chooses the neurons that are moved one by one; add it to methods"
            )
        own = self._neurons[self._neurons.domain == ALL_DOMAINS]
        first = own.loc[own.effect.abs().nlargest(self.wanted.neurons).index]
        chosen = set(zip(first.layer, first.expert, first.neuron, strict=True))
        return [unit for unit in units if (unit.layer, unit.expert, unit.neuron) in chosen]

    def _depth(self, bootstrap: int, progress: Progress | None) -> pd.DataFrame:
        found = depth(self.pair, self.batches, self.metric, self._told(progress, "depth"))
        return self._means(found, ["cut", "upstream", "late"], bootstrap)

    def _curves(self, effects: pd.DataFrame, scores: Scores, bootstrap: int, progress: Progress | None) -> Tables:
        units = components(self.pair.architecture)
        rankings = rankings_of({**self._scores(effects), "norm": self._norms(units), **scores}, units)
        wanted = self.wanted
        found = curves(
            self.pair,
            rankings,
            batches(self._drawn(wanted.curve_prompts), 4 * self.batch_size, self.pair.pad_id),
            self.metric,
            draws=wanted.curve_draws,
            points=wanted.curve_points,
            seed=self.seed,
            told=self._told(progress, "curves"),
        )
        points = self._means(found.points, ["ranking", "draw", "direction", "n"], bootstrap)
        return {"curves": points, "areas": found.areas.assign(metric=self.metric.name)}

    def _drawn(self, n: int) -> list[Encoded]:
        """At most `n` of the prompts, drawn at random."""
        order = np.random.default_rng(self.seed).permutation(len(self.encoded))[:n]
        return [self.encoded[i] for i in sorted(order.tolist())]

    def _scores(self, effects: pd.DataFrame) -> dict[str, dict[Unit, float]]:
        """Every method's ranking of the components: by how far they move the metric the way that fine-tuning did."""
        own = effects[(effects.granularity == "component") & (effects.domain == ALL_DOMAINS) & (effects.control == "")]
        base, tuned = (values(model, self.batches, self.metric) for model in (self.pair.base, self.pair.tuned))
        sign = float(np.sign(np.nanmean(tuned - base)))
        found = {}
        for (method, direction), part in own[own.method != "synergy"].groupby(["method", "direction"], sort=False):
            twice = own[own.method == method].direction.nunique() > 1
            name = f"{method} {direction}" if twice else str(method)
            found[name] = dict(zip(units_in(part), (sign * part.effect).tolist(), strict=True))
        return found

    def _norms(self, units: Sequence[Unit]) -> dict[Unit, float]:
        before, after = (dict(model.named_parameters()) for model in (self.pair.base, self.pair.tuned))

        def square(name: str) -> float:
            rows = min(len(before[name]), len(after[name])) if before[name].ndim else None
            left, right = (side[name].detach()[:rows] if rows else side[name].detach() for side in (before, after))
            return float((right.to(left.device).float() - left.float()).square().sum())

        return {
            unit: float(sum(square(piece.parameter) for piece in pieces(self.pair.architecture, unit, before)) ** 0.5)
            for unit in units
        }

    def _means(self, rows: pd.DataFrame, by: list[str], bootstrap: int) -> pd.DataFrame:
        """`value lo hi` over prompts, over all and by domain."""
        domains = [ALL_DOMAINS, *sorted(set(self.domains.values()))]
        parts = []
        for domain in domains[: 1 if len(domains) == 2 else None]:
            own = rows[rows.prompt_id.map(self.domains).eq(domain) | (domain == ALL_DOMAINS)]
            table = own.pivot(index="prompt_id", columns=by, values="value")
            names = [self.clusters[str(prompt)] for prompt in table.index]
            mean, lo, hi = bootstrap_mean(table.to_numpy(np.float64), bootstrap, self.seed, names)
            part = table.columns.to_frame(index=False).assign(value=mean, lo=lo, hi=hi, domain=domain)
            parts.append(part.assign(metric=self.metric.name))
        return pd.concat(parts, ignore_index=True)

    def _told(self, progress: Progress | None, label: str) -> Told | None:
        if progress is None:
            return None
        return lambda done, total: progress(done, total, label)
