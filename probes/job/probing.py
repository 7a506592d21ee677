"""Linear probes on the states of a finished run's models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from probes.directions.labels import Label, label_of
from probes.directions.nulls import ROUNDED
from probes.directions.probing import Probing, Sides, probe_rows, with_families
from probes.directions.states import Place, States
from probes.errors import RunError
from probes.job.further import Tables, add, named, reopened
from probes.job.labels import name_of, values_of
from probes.job.reading import RANDOM, by_prompt, layers_of, null_states, require_site, states_of
from probes.store.run import Run
from tv.prompts.encoding import Positions
from tv.runtime.compute import Compute

Floats = NDArray[np.float64]


def probe(
    run: Run,
    label: str = "domain",
    *,
    of: str = "own",
    site: str = "resid_post",
    positions: Positions = "last",
    layers: Sequence[int] | None = None,
    tuned: str | Sequence[str] | None = None,
    folds: int = 5,
    controls: int = 20,
    draws: int = 3,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Read a label from the states of each layer, in base and tuned, and tell whether its direction turned.

    The tables `probe_accuracy`, `probe_directions` and `probe_weights` are added to the run; rows of other labels stay.

    Args:
        run: A finished run.
        label: "domain"; "correct" (target preferred to foil); or FILE:COLUMN of a CSV, TSV, JSONL or Parquet file with
            a column `prompt_id` or `id`. A number of more than ten values is read by ridge regression.
        of: Of `correct`: whose answers, "base" or "tuned"; "own" are those of the model that is read.
        site: Where states are read: resid_pre, resid_mid, resid_post, attn_out or mlp_out.
        positions: Which places of a prompt, averaged: "last" of the text, "all", "target", ….
        layers: Which; all without it.
        tuned: One or several of its tuned models; all without it.
        folds: Of whole clusters.
        controls: Draws of labels moved among clusters; with fewer than 20 nothing can be readable.
        draws: Of base + random T, as a null of every difference.
        compute: Where models compute, and the progress callback.

    Returns:
        The rows of `probe_directions` of this label.

    Raises:
        RunError: An unknown label, site, layer or model; a label with one class, or a class in one cluster; fewer
            clusters than folds; or a checkpoint that is no longer what the run read.

    Examples:
        >>> run = probes.load("reports/demo")
        >>> rows = probes.probe(run, "domain", layers=[2], tuned=["math"], folds=2, controls=2, draws=0)
        >>> rows[["label", "layer", "verdict"]].to_numpy().tolist(), "probe_weights" in run.tables
        ([['domain', 2, 'cannot tell']], True)
    """
    require_site(site, positions)
    if folds < 2:
        raise RunError(f"{folds} folds are too few; give at least two")
    if of not in ("own", "base", "tuned"):
        raise RunError(f"of {of!r}: use own, base or tuned")
    where: list[Place] = [(site, layer) for layer in layers_of(run, layers)]
    asked = {name: _labels(run, label, of, name, folds) for name in named(run, tuned)}
    models = reopened(run, compute)
    wanted = Probing(folds, controls, models.suite.seed)
    found: dict[str, Tables] = {}
    for name, labels in asked.items():
        states = states_of(run, models, name, where, positions)
        nulls = list(null_states(models, name, states.encoded, where, positions, draws))
        found[name] = _tables(states, nulls, labels, where, positions, wanted, name, compute)
    add(run, found, {table: {"label": name_of(label, of), "site": site} for table in _TABLES})
    rows = run["probe_directions"]
    chosen = (rows.label == name_of(label, of)) & (rows.site == site) & rows.tuned.isin(list(found))
    return rows[chosen].reset_index(drop=True)


_TABLES = ("probe_accuracy", "probe_directions", "probe_weights")


@dataclass(frozen=True)
class _Labels:
    base: Label
    tuned: Label
    prompts: Sequence[str]


def _labels(run: Run, label: str, of: str, tuned: str, folds: int) -> _Labels:
    """The labels of the prompts that have one in both models. Raises RunError before any model is loaded."""
    rows = run.df("prompts", columns=["prompt_id", "cluster"])
    own = {
        str(p): str(p) if pd.isna(c) or c == "" else str(c) for p, c in zip(rows.prompt_id, rows.cluster, strict=True)
    }
    values = values_of(run, label, of, tuned)
    clusters = {prompt: own[prompt] for prompt in own if all(prompt in side for side in values.values())}
    name = name_of(label, of)
    (base, prompts), (other, same) = (label_of(name, values[side], clusters, folds) for side in ("base", "tuned"))
    if prompts != same or base.classes != other.classes:
        raise RunError(f"label {name}: base and {tuned} have no values for the same prompts; use of: base or tuned")
    return _Labels(base, other, prompts)


def _tables(
    states: States,
    nulls: Sequence[tuple[str, States]],
    labels: _Labels,
    where: Sequence[Place],
    positions: str,
    wanted: Probing,
    tuned: str,
    compute: Compute,
) -> Tables:
    accuracy, directions, weights = [], [], []
    for done, place in enumerate(where, 1):
        sides = Sides(
            _at(states, states.base[place], labels.prompts),
            _at(states, states.tuned[place], labels.prompts),
            *(
                [_both(null, place, labels.prompts) for kind, null in nulls if kind == wanted_kind]
                for wanted_kind in (ROUNDED, RANDOM)
            ),
        )
        keys = {"label": labels.base.name, "site": place[0], "layer": place[1], "positions": positions}
        rows, row, packed = probe_rows(sides, (labels.base, labels.tuned), wanted, tuned)
        accuracy += [keys | each for each in rows]
        directions.append(keys | row)
        weights += [keys | each for each in packed]
        compute.tell(f"probes {tuned}", done, len(where), f"layer {place[1]}")
    return {
        "probe_accuracy": pd.DataFrame(accuracy),
        "probe_directions": with_families(pd.DataFrame(directions)),
        "probe_weights": pd.DataFrame(weights),
    }


def _both(states: States, place: Place, prompts: Sequence[str]) -> tuple[Floats, Floats]:
    return _at(states, states.base[place], prompts), _at(states, states.tuned[place], prompts)


def _at(states: States, values: Tensor, prompts: Sequence[str]) -> Floats:
    found: Floats = by_prompt(states, values, prompts).double().numpy()
    return found
