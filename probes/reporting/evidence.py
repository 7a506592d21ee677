"""What the report reads of a run for one tuned model: only the columns it shows, averaged over tokens, then prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from probes.attribution.floors import all_floors
from probes.linking import CAUSAL_MEASURES
from probes.measures.ledger import CANCELLED
from probes.reporting.behaviour import compare_behaviour
from probes.store.run import Run
from probes.store.schemas import ALL_DOMAINS, SCHEMAS

#: The three terms of the ledger.
TERMS = ("direct", "inherited", "interaction")
_SHARES = " ".join(f"{term}_share" for term in TERMS)
_NEW = "new_share new_share_null new_share_of_w new_share_10 new_share_10_of_w"
_WHOLE = [("head", "==", -1)]


@dataclass(frozen=True)
class Evidence:
    """One tuned model's tables, reduced. A table that the run lacks is an empty frame with its columns."""

    tuned: str
    gated: bool  # false where signs of pre-activations stand in for gate patterns
    n_layers: int
    weights: pd.DataFrame  # a row per layer × module, without those of experts
    alignment: pd.DataFrame  # a row per layer × module × side × epsilon
    flips: pd.DataFrame  # layer domain flip_rate chance_flip_rate edit_distance chance_edit_distance
    changes: pd.DataFrame  # layer component relative_change cosine
    ledger: pd.DataFrame  # layer module direct inherited interaction (shares of the change) cancelled new_share …
    behaviour: pd.DataFrame  # a row per domain × metric, base beside tuned: see `compare_behaviour`
    effects: pd.DataFrame  # a row per component × method × domain, one metric
    link: pd.DataFrame
    correlations: pd.DataFrame
    noise_floor: pd.DataFrame  # precision layer flip_rate: the base against itself
    checks: pd.DataFrame  # check holds
    whole: pd.DataFrame  # domain method control metric effect within_noise: all of T grafted, and control vectors
    control_draws: pd.DataFrame  # domain control draw metric effect: draws of control vectors, grafted whole
    sameness: Mapping[str, Any] = field(default_factory=dict)  # where the run is aligned: what that explained of T
    unseen: str = ""  # what differs between the two models and is in no row of any table, in a line
    experts: pd.DataFrame = field(default_factory=pd.DataFrame)  # `weights` of every expert
    areas: pd.DataFrame = field(default_factory=pd.DataFrame)  # ranking direction n_enough lo: see `tables`
    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)  # method reference rho lo hi n, of components
    trained: str = ""  # what was trained, where the tuned model is an adapter

    @property
    def all_weights(self) -> pd.DataFrame:
        """The rows of every module, those of experts among them: whoever says what moved asks all of them."""
        return pd.concat([self.weights, self.experts], ignore_index=True) if len(self.experts) else self.weights


def gather(run: Run, tuned: str) -> Evidence:
    """Read what the report shows of `tuned`."""
    architecture = run.manifest["architecture"]
    this_model = [("tuned", "==", tuned)]
    prompts = rows_of(run, "prompts", "prompt_id domain cluster", [])
    domain_of = prompts.set_index("prompt_id").domain.fillna("").to_dict()
    shown = [
        *this_model,
        ("granularity", "==", "component"),
        ("control", "==", ""),
        ("method", "in", list(CAUSAL_MEASURES)),
    ]
    of_weights = (
        "layer module head expert kind delta_norm relative_norm cosine changed_fraction noise_share stable_rank "
        "cos_weight_delta rows cols numbers diagonal_energy diagonal_energy_null"
    )
    measured = "domain layer component method metric effect lo hi p q n lo_all hi_all held_out within_noise chosen"
    return Evidence(
        tuned,
        bool(architecture.get("gated", True)) or "gates" not in run.tables,
        int(architecture["n_layers"]),
        rows_of(run, "weights", of_weights, [*this_model, *_WHOLE, ("expert", "==", -1), ("tied", "==", False)]),
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
        _changes(
            rows_of(
                run,
                "changes",
                "prompt_id layer component relative_change cosine",
                [*this_model, *_WHOLE, ("expert", "==", -1)],
            )
        ),
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
            prompts,
            all_floors(run),
        ),
        one_metric(rows_of(run, "effects", measured, shown)),
        rows_of(run, "link", "", this_model),
        rows_of(
            run,
            "correlations",
            "kind weight_measure activation_measure rho lo hi n null_lo null_hi p p_family",
            [*this_model, ("over", "==", "all")],
        ),
        rows_of(run, "noise_floor", "precision layer flip_rate", []),
        rows_of(run, "checks", "check holds", this_model),
        one_metric(
            rows_of(
                run,
                "effects",
                "domain method control metric effect within_noise",
                [*this_model, ("granularity", "==", "all")],
            )
        ),
        one_metric(rows_of(run, "control_draws", "domain control draw metric effect", this_model)),
        run.manifest.get("sameness", {}).get(tuned, {}),
        _unseen(run.manifest.get("coverage", {}).get(tuned, {})),
        rows_of(run, "weights", of_weights, [*this_model, *_WHOLE, ("expert", ">=", 0), ("tied", "==", False)]),
        one_metric(rows_of(run, "areas", "ranking direction metric n_enough lo", this_model)),
        one_metric(
            rows_of(
                run,
                "agreement",
                "granularity method reference domain metric rho lo hi n",
                [*this_model, ("granularity", "==", "component"), ("domain", "==", ALL_DOMAINS)],
            )
        ),
        _trained(run.manifest.get("notes", {}).get(tuned, [])),
    )


#: What opening an adapter notes of it.
_ADAPTER = re.compile(r"an adapter \((.+)\), which changes (\d+ of \d+ tensors)")


def _trained(notes: Sequence[str]) -> str:
    found = next((match for note in notes if (match := _ADAPTER.search(note))), None)
    return f"an adapter ({found[1]}), which changes {found[2]}" if found else ""


def _unseen(coverage: Mapping[str, Any]) -> str:
    return coverage["note"] if coverage.get("n_changed") else ""


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
