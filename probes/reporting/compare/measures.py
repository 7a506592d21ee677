"""The numbers of several entries side by side, and how far each is from the first, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from probes.linking import CAUSAL_MEASURES
from probes.reporting.alignment import fixed_fraction
from probes.reporting.compare.entries import Entry, positions_of
from probes.reporting.evidence import rows_of
from probes.reporting.words import METRICS, is_share, number, percent, points, signed
from probes.store.schemas import ALL_DOMAINS
from tv.architecture.anatomy import MODULES
from tv.stats.change import LEAST_FLOOR
from tv.stats.means import Floats, mean_interval
from tv.stats.proportions import mcnemar_p, share_change, share_interval
from tv.stats.ranks import bootstrap_spearman, shuffled_spearman


@dataclass(frozen=True)
class Measure:
    """What a measure is called, and whether it is a share."""

    words: str
    share: bool = False

    def form(self, value: float | None) -> str:
        """A value, as text."""
        return percent(value) if self.share else number(value)

    def change(self, value: float | None) -> str:
        """A difference of two values, as text."""
        return points(value) if self.share else signed(value)


#: Measures of the weights, which do not depend on prompts.
WEIGHTS = {
    "relative_norm": Measure("relative norm ‖T‖/‖W‖, median over matrices that moved"),
    "lift_left": Measure("lift at 10 %, output side, mean over matrices"),
    "lift_right": Measure("lift at 10 %, input side, mean over matrices"),
}
#: Measures of activations: each is the mean of a table's column, prompt by prompt.
ACTIVATIONS = {
    "flip_rate": Measure("gate flips", share=True),
    "relative_change": Measure("relative contribution change"),
    "new_share_10": Measure("direct term outside the leading 10 %", share=True),
}
_READ = {"flip_rate": "gates", "relative_change": "changes", "new_share_10": "ledger"}
_ONLY: dict[str, list[tuple[str, str, object]]] = {
    "changes": [("head", "==", -1), ("expert", "==", -1)],
    "ledger": [("module", "in", list(MODULES))],
}
#: Behaviour of the tuned model.
BEHAVIOUR = {name: Measure(words, share=is_share(name)) for name, (words, _, _) in METRICS.items()}
MEASURES = {**WEIGHTS, **ACTIVATIONS, **BEHAVIOUR}
_BINARY = ("exact_match", "final_answer")  # 0 or 1 of each prompt
#: Names the comparison of two entries' effects in each one's `own_domain`, beside those in the prompts' domains.
OWN_DOMAIN = "where each changed most"

_VALUES = ["entry", "measure", "domain", "value", "lo", "hi", "n"]
_AGAINST = ["difference", "difference_lo", "difference_hi", "n_shared", "p"]


def measure_rows(entries: Sequence[Entry]) -> pd.DataFrame:
    """A row per entry × measure × domain: `value lo hi n`, and its `difference` from the first entry, with its `p`.

    Intervals are 95 % over prompts or their clusters. The difference is paired: over the `n_shared` prompts that both
    were asked; p is that of no difference, of this row alone.
    Activations that were read at other positions than the first's have no difference. Measures of the weights have the
    domain "" and no interval. What an entry did not measure has no row.
    """
    tables = [prompt_values(entry) for entry in entries]
    first = _weights(entries[0])
    rows: list[dict[str, object]] = []
    for entry, table in zip(entries, tables, strict=True):
        itself = entry is entries[0]
        for name, value in _weights(entry).items():
            apart = np.nan if itself else value - first.get(name, np.nan)
            rows.append({"entry": entry.label, "measure": name, "domain": "", "value": value, "difference": apart})
        alike = positions_of(entry) == positions_of(entries[0])
        at = tables[0] if alike else tables[0].drop(columns=list(ACTIVATIONS), errors="ignore")
        paired = [] if itself else differences(at, table)
        compared = {(row["measure"], row["domain"]): row for row in paired}
        for measure, domain, *estimate in _means(table):
            row = dict(zip(_VALUES, (entry.label, measure, domain, *estimate), strict=True))
            rows.append({**row, **compared.get((measure, domain), {})})
    return pd.DataFrame(rows, columns=[*_VALUES, *_AGAINST])


def prompt_values(entry: Entry) -> pd.DataFrame:
    """(prompts, measures) of an entry, by `same`, with the prompt's `domain` and `cluster`."""
    this_model = [("tuned", "==", entry.evidence.tuned)]
    columns = {}
    for measure, table in _READ.items():
        rows = rows_of(entry.run, table, f"prompt_id {measure}", [*this_model, *_ONLY.get(table, [])])
        columns[measure] = rows.groupby("prompt_id")[measure].mean()
    behaviour = rows_of(entry.run, "behaviour", "prompt_id metric value", [("model", "==", entry.evidence.tuned)])
    for metric, rows in behaviour.groupby("metric"):
        if metric in BEHAVIOUR:
            columns[str(metric)] = rows.set_index("prompt_id").value
    values = pd.DataFrame(columns, index=entry.prompts.index).astype(float).dropna(axis=1, how="all")
    return entry.prompts.join(values).set_index("same")


def differences(left: pd.DataFrame, right: pd.DataFrame) -> list[dict[str, object]]:
    """`measure domain` and how far `right` is from `left`, with interval and p, over the prompts that both were asked.

    Both are `prompt_values`; domains and clusters are those of `right`.
    """
    shared = left.index.intersection(right.index, sort=False)
    both = [name for name in MEASURES if name in left and name in right]
    if not len(shared) or not both:
        return []
    rows = []
    for domain, asked in _cuts(right.loc[shared]):
        clusters, before = _clusters(asked), left.loc[asked.index]
        for measure in both:
            apart = asked[measure] - before[measure]
            apart = apart.mask(apart.abs() < LEAST_FLOOR, 0.0)  # float32 resolves no less
            if not (n := int(apart.notna().sum())):
                continue
            if measure in _BINARY:
                difference, lo, hi = share_change(before[measure], asked[measure], clusters)
                p = mcnemar_p(before[measure], asked[measure], clusters) if np.isfinite(lo) else np.nan
            else:
                difference, lo, hi, p, _ = map(float, mean_interval(apart, clusters))
            estimate = dict(zip(_AGAINST, (difference, lo, hi, n, p), strict=True))
            rows.append({"measure": measure, "domain": domain, **estimate})
    return rows


def effect_correlations(entries: Sequence[Entry]) -> pd.DataFrame:
    """A row per two entries × method × domain: Spearman's rho of their components' effects, `lo hi` over prompts.

    Over the prompts that both were asked (`n_shared`) if there are any, else over each one's own. `null_lo null_hi` is
    where 95 % of rhos of shuffled components fall, `p` the share of them as far from 0, `n` the components. Two entries
    of different depth have no row. A metric of which less is better counts as its negative.
    """
    tables = {entry.label: dict(_effects(entry)) for entry in entries}
    rows = []
    for a, b in combinations(entries, 2):
        if a.evidence.n_layers != b.evidence.n_layers:
            continue
        for method in CAUSAL_MEASURES:
            if method in tables[a.label] and method in tables[b.label]:
                labels = {"a": a.label, "b": b.label, "method": method}
                rows += [labels | row for row in _correlated(a, tables[a.label][method], b, tables[b.label][method])]
    columns = ["a", "b", "method", "domain", "rho", "lo", "hi", "n", "n_shared", "null_lo", "null_hi", "p"]
    return pd.DataFrame(rows, columns=columns)


def _weights(entry: Entry) -> dict[str, float]:
    evidence, values = entry.evidence, {}
    moved = evidence.weights[evidence.weights.module.isin(MODULES)] if len(evidence.weights) else evidence.weights
    if len(moved):
        norms = moved.relative_norm[moved.relative_norm > 0]
        values["relative_norm"] = float(norms.median()) if len(norms) else 0.0
    fixed = fixed_fraction(evidence.alignment) if len(evidence.alignment) else evidence.alignment
    for side, rows in fixed.groupby("side"):
        values[f"lift_{side}"] = float(rows.lift.mean())
    return values


def _means(table: pd.DataFrame) -> Iterator[tuple[str, str, float, float, float, int]]:
    """(measure, domain, mean, lo, hi, prompts) over all prompts, and over those of each domain."""
    for domain, rows in _cuts(table):
        clusters = _clusters(rows)
        for measure in (name for name in MEASURES if name in rows):
            values = rows[measure].to_numpy(np.float64)
            if n := int((~np.isnan(values)).sum()):
                estimate = share_interval if measure in _BINARY else mean_interval
                mean, lo, hi = map(float, estimate(values, clusters)[:3])
                yield measure, domain, mean, lo, hi, n


def _cuts(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """All prompts, and those of each domain."""
    return [(ALL_DOMAINS, table), *((str(domain), rows) for domain, rows in table.groupby("domain", sort=False))]


def _clusters(rows: pd.DataFrame) -> list[str] | None:
    """The prompts' clusters, a prompt without one by itself; None where none has one."""
    named = rows.cluster.astype(bool)
    return list(rows.cluster.where(named, rows.index.to_series())) if named.any() else None


def _effects(entry: Entry) -> Iterator[tuple[str, pd.DataFrame]]:
    """By method, (prompts, components) of effects, by `same`."""
    where = [
        *[("tuned", "==", entry.evidence.tuned), ("granularity", "==", "component"), ("control", "==", "")],
        *[("method", "in", list(CAUSAL_MEASURES)), ("metric", "==", entry.metric)],
    ]
    rows = rows_of(entry.run, "prompt_effects", "method prompt_id layer component effect", where)
    rows = rows.assign(same=rows.prompt_id.map(entry.prompts.same))
    falls = entry.metric == "kl" or METRICS.get(entry.metric, ("", "", None))[2] is False  # towards the tuned model
    sign = -1 if falls else 1
    for method, family in rows.groupby("method", sort=False):
        yield str(method), sign * family.pivot(index="same", columns=["layer", "component"], values="effect")


def _correlated(a: Entry, left: pd.DataFrame, b: Entry, right: pd.DataFrame) -> Iterator[dict[str, object]]:
    suite = a.run.manifest["suite"]
    draws, seed = suite.get("bootstrap", 1000), suite.get("seed", 0)
    units = left.columns.intersection(right.columns, sort=False)
    domains = [entry.prompts.set_index("same").domain for entry in (a, b)]
    for name in (OWN_DOMAIN, ALL_DOMAINS, *(domain for domain in domains[0].unique() if domain in set(domains[1]))):
        sides = []
        for entry, domain_of, table in zip((a, b), domains, (left, right), strict=True):
            wanted = entry.own_domain if name == OWN_DOMAIN else name
            keep = table.index if wanted == ALL_DOMAINS else table.index[domain_of.reindex(table.index) == wanted]
            sides.append(table.loc[keep, units])
        shared = sides[0].index.intersection(sides[1].index, sort=False)
        x, y = (_values(side.loc[shared] if len(shared) else side) for side in sides)
        if len(x) and len(y):
            clusters = _clusters(a.prompts.set_index("same").loc[shared]) if len(shared) else None
            rho, lo, hi, n = bootstrap_spearman(x, y, draws, seed, clusters)
            null_lo, null_hi, p = shuffled_spearman(rho, n, draws, seed)
            row = {"domain": name, "rho": rho, "lo": lo, "hi": hi, "n": n, "n_shared": len(shared)}
            yield {**row, "null_lo": null_lo, "null_hi": null_hi, "p": p}


def _values(side: pd.DataFrame) -> Floats:
    return side.to_numpy(np.float64)
