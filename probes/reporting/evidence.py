"""What the report reads of a run for one tuned model: only the columns it shows, averaged over tokens, then prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.linking import CAUSAL_MEASURES
from probes.measures.ledger import CANCELLED
from probes.reporting.words import METRICS
from probes.store.run import Run
from probes.store.schemas import ALL_DOMAINS, SCHEMAS
from tv.stats.resampling import bootstrap_mean

#: The three terms of the ledger.
TERMS = ("direct", "inherited", "interaction")
_SHARES = " ".join(f"{term}_share" for term in TERMS)
_NEW = "new_share new_share_null new_share_of_w new_share_10 new_share_10_of_w"
_WHOLE = [("head", "==", -1)]
_COMPARED = [
    *("domain", "metric", "n", "base", "base_lo", "base_hi", "tuned", "tuned_lo", "tuned_hi"),
    *("change", "change_lo", "change_hi", "gained", "lost"),
]


@dataclass(frozen=True)
class Evidence:
    """One tuned model's tables, reduced. A table that the run lacks is an empty frame with its columns."""

    tuned: str
    gated: bool
    n_layers: int
    weights: pd.DataFrame  # a row per layer × module
    alignment: pd.DataFrame  # a row per layer × module × side × epsilon
    flips: pd.DataFrame  # layer domain flip_rate chance_flip_rate edit_distance chance_edit_distance
    changes: pd.DataFrame  # layer component relative_change cosine
    ledger: pd.DataFrame  # layer module direct inherited interaction (shares of the change) cancelled new_share …
    behaviour: pd.DataFrame  # a row per domain × metric, base beside tuned
    effects: pd.DataFrame  # a row per component × method × domain, one metric; n of the domain's prompts
    link: pd.DataFrame
    correlations: pd.DataFrame
    noise_floor: pd.DataFrame  # precision layer flip_rate: the base against itself
    checks: pd.DataFrame  # check holds
    whole: pd.DataFrame  # domain method control metric effect: all of T grafted at once, and control vectors


def gather(run: Run, tuned: str) -> Evidence:
    """Read what the report shows of `tuned`."""
    suite, architecture = run.manifest["suite"], run.manifest["architecture"]
    this_model = [("tuned", "==", tuned)]
    domains = run.df("prompts", columns=["prompt_id", "domain"]) if "prompts" in run.tables else None
    domain_of = {} if domains is None else domains.set_index("prompt_id").domain.fillna("").to_dict()
    shown = [
        *this_model,
        ("granularity", "==", "component"),
        ("control", "==", ""),
        ("method", "in", list(CAUSAL_MEASURES)),
    ]
    effects = one_metric(rows_of(run, "effects", "domain layer component method metric effect lo hi q", shown))
    counts = _counts(rows_of(run, "prompt_effects", "metric prompt_id", this_model), effects, domain_of)
    return Evidence(
        tuned,
        bool(architecture.get("gated", True)),
        int(architecture["n_layers"]),
        rows_of(
            run,
            "weights",
            "layer module head expert relative_norm cosine changed_fraction noise_share stable_rank cos_weight_delta "
            "rows cols diagonal_energy diagonal_energy_null",
            [*this_model, *_WHOLE, ("expert", "==", -1), ("tied", "==", False)],
        ),
        rows_of(
            run,
            "alignment",
            "layer module side epsilon k dim ssa ssa_null kappa ssa_z at_ceiling",
            [*this_model, *_WHOLE, ("expert", "==", -1)],
        ),
        _flips(
            rows_of(
                run,
                "gates",
                "prompt_id layer flip_rate chance_flip_rate edit_distance chance_edit_distance",
                this_model,
            ),
            domain_of,
        ),
        _changes(rows_of(run, "changes", "prompt_id layer component relative_change cosine", [*this_model, *_WHOLE])),
        _ledger(
            rows_of(
                run,
                "ledger",
                f"prompt_id layer module delta_norm {_SHARES} direct_norm inherited_norm interaction_norm {_NEW}",
                this_model,
            )
        ),
        compare_behaviour(
            rows_of(run, "behaviour", "prompt_id model metric value", [("model", "in", ["base", tuned])]),
            tuned,
            domain_of,
            suite.get("bootstrap", 1000),
            suite.get("seed", 0),
        ),
        effects.assign(n=effects.domain.map(counts).astype(float)),
        rows_of(run, "link", "", this_model),
        rows_of(
            run,
            "correlations",
            "kind weight_measure activation_measure rho lo hi n null_lo null_hi p",
            [*this_model, ("over", "==", "all")],
        ),
        rows_of(run, "noise_floor", "precision layer flip_rate", []),
        rows_of(run, "checks", "check holds", this_model),
        one_metric(
            rows_of(run, "effects", "domain method control metric effect", [*this_model, ("granularity", "==", "all")])
        ),
    )


def compare_behaviour(
    values: pd.DataFrame, tuned: str, domain_of: dict[str, str], draws: int, seed: int
) -> pd.DataFrame:
    """Per domain and metric: both models' means and the paired change, each with its 95 % bootstrap over prompts.

    `gained` and `lost` count the prompts that gained or lost exact match. A metric that only the tuned model has (kl)
    has no base and no change. The domain whose target NLL changed most comes first.
    """
    rows: list[dict[str, Any]] = []
    domains = values.prompt_id.map(domain_of).fillna("")
    for (domain, metric), part in values.groupby([domains, "metric"], sort=False):
        wide = part.pivot(index="prompt_id", columns="model", values="value").reindex(columns=["base", tuned])
        base, after = wide["base"].to_numpy(np.float64), wide[tuned].to_numpy(np.float64)
        row: dict[str, Any] = {"domain": domain, "metric": metric, "n": int((~np.isnan(after)).sum())}
        for name, column in (("base", base), ("tuned", after), ("change", after - base)):
            mean, lo, hi = (float(value) for value in bootstrap_mean(column, draws, seed))
            row |= {name: mean, f"{name}_lo": lo, f"{name}_hi": hi}
        if metric == "exact_match":
            row |= {"gained": int((after > base).sum()), "lost": int((after < base).sum())}
        rows.append(row)
    table = pd.DataFrame(rows, columns=_COMPARED)
    moved = table[table.metric == "target_nll"].set_index("domain").change.abs()
    order = {name: i for i, name in enumerate(METRICS)}
    keys = {"_moved": -table.domain.map(moved).astype(float), "_metric": table.metric.map(order)}
    return table.assign(**keys).sort_values(["_moved", "domain", "_metric"])[_COMPARED].reset_index(drop=True)


def rows_of(run: Run, table: str, columns: str, where: Sequence[Any]) -> pd.DataFrame:
    """Columns (all if none is named) of the rows that match; an empty frame if the run has no such table."""
    names = columns.split() or list(SCHEMAS[table].names)
    if table not in run.tables:
        return pd.DataFrame({name: pd.Series(dtype="object") for name in names})
    return run.df(table, columns=names, where=list(where))


def one_metric(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one metric: logit_diff where it was measured."""
    metrics = list(table.metric.unique())
    return (
        table if len(metrics) < 2 else table[table.metric == ("logit_diff" if "logit_diff" in metrics else metrics[0])]
    )


def _counts(prompt_effects: pd.DataFrame, effects: pd.DataFrame, domain_of: dict[str, str]) -> dict[str, int]:
    """How many prompts stand behind the effects of each domain."""
    rows = prompt_effects[prompt_effects.metric.isin(set(effects.metric))].drop_duplicates("prompt_id")
    return {**rows.prompt_id.map(domain_of).value_counts().to_dict(), ALL_DOMAINS: len(rows)}


def _flips(gates: pd.DataFrame, domain_of: dict[str, str]) -> pd.DataFrame:
    if gates.empty:
        return gates.assign(domain=[]).drop(columns="prompt_id")
    per_prompt = gates.groupby(["prompt_id", "layer"], as_index=False).mean()
    per_prompt["domain"] = per_prompt.prompt_id.map(domain_of).fillna("")
    return per_prompt.drop(columns="prompt_id").groupby(["domain", "layer"], sort=False).mean().reset_index()


def _changes(changes: pd.DataFrame) -> pd.DataFrame:
    key = ["layer", "component"]
    if changes.empty:
        return changes.drop(columns="prompt_id")
    per_prompt = changes.groupby(["prompt_id", *key])[["relative_change", "cosine"]].mean()
    return per_prompt.groupby(key).mean().reset_index()


def _ledger(ledger: pd.DataFrame) -> pd.DataFrame:
    """Means over places, then prompts; `cancelled` is the share of places where Δy is far below its largest term."""
    key, measures = ["layer", "module"], [*TERMS, "cancelled", *_NEW.split()]
    if ledger.empty:
        return pd.DataFrame(columns=[*key, *measures])
    rows = ledger.rename(columns={f"{term}_share": term for term in TERMS})
    largest = ledger[[f"{term}_norm" for term in TERMS]].max(axis=1)
    rows = rows.assign(cancelled=((largest > 0) & (ledger.delta_norm <= CANCELLED * largest)).astype(float))
    return rows.groupby(["prompt_id", *key])[measures].mean().groupby(key).mean().reset_index()
