"""What became of the representations of a finished run's models: distances, the directions of Δh, what these do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd
from torch import Tensor

from probes.attribution.divergence import parted
from probes.attribution.metric import answerable, metric_of, require_answers, require_metric
from probes.capture.loading import Pairs
from probes.directions.nulls import ROUNDED
from probes.directions.projecting import curve
from probes.directions.representations import Layer, angle_rows, curve_rows, distance_rows, spectrum_rows
from probes.directions.states import Place, States
from probes.directions.subspaces import RANKS
from probes.directions.writers import leading_writers
from probes.discovery.finding import is_discovered
from probes.errors import RunError
from probes.job.effects import prompts_of
from probes.job.further import Tables, add, encoded_of, named, reopened
from probes.job.reading import RANDOM, by_prompt, layers_of, null_states, require_site, states_of
from probes.store.run import Run
from probes.suite import metric_names
from tv.errors import choices
from tv.prompts.encoding import Positions, batches
from tv.runtime.compute import Compute

#: Clusters without which no half can be held against another.
_FEWEST = 4


def representations(
    run: Run,
    *,
    site: str = "resid_post",
    positions: Positions = "last",
    layers: Sequence[int] | None = None,
    tuned: str | Sequence[str] | None = None,
    metric: str | None = None,
    neighbours: int = 10,
    draws: int = 3,
    curves: bool = True,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Tell how far both models' representations are apart, of which directions Δh is made, and what these do.

    The tables `distances`, `delta_spectrum`, `delta_angles` and `delta_curve` are added to the run; rows of other sites
    stay.

    Args:
        run: A finished run.
        site: Where states are read: resid_pre, resid_mid, resid_post, attn_out or mlp_out.
        positions: Which places of a prompt, averaged: "last" of the text, "all", "target", …. The curve has all.
        layers: Which; all without it.
        tuned: One or several of its tuned models; all without it.
        metric: The behaviour that the curve measures; the run's own without it, else logit_diff.
        neighbours: k of the neighbours that agree; at most half of the prompts.
        draws: Of base + random T, as a null.
        curves: Whether projections of Δh are patched into the base, a forward pass each.
        compute: Where models compute, and the progress callback.

    Returns:
        The rows of `distances` of this site.

    Raises:
        RunError: An unknown site, layer, model or metric; too few clusters of prompts; or a checkpoint that is no
            longer what the run read.

    Examples:
        >>> run = probes.load("reports/demo")
        >>> rows = probes.representations(run, layers=[5], tuned=["math"], draws=0)
        >>> rows.measure.tolist(), "delta_curve" in run.tables
        (['cka', 'procrustes', 'neighbours'], True)
    """
    require_site(site, positions)
    where: list[Place] = [(site, layer) for layer in layers_of(run, layers)]
    asked = named(run, tuned)
    if neighbours < 1:
        raise RunError(f"neighbours {neighbours}: give at least one")
    _require_prompts(run)
    measured = _metric(run, metric) if curves else ""
    models = reopened(run, compute)
    found = {}
    for name in asked:
        found[name] = dict(_tables(run, models, name, where, positions, neighbours, draws, compute))
        if curves:
            found[name]["delta_curve"] = _curve(run, models, name, where, measured, compute)
    add(run, found, {table: {"site": site} for tables in found.values() for table in tables})
    rows = run["distances"]
    return rows[(rows.site == site) & rows.tuned.isin(asked)].reset_index(drop=True)


def _require_prompts(run: Run) -> None:
    prompts = prompts_of(run)
    n = len({prompt.cluster or prompt.id for prompt in prompts})
    if n < _FEWEST:
        raise RunError(
            f"{run.path}: {len(prompts)} prompts in {n} clusters; what one half finds is measured on the other, so at "
            f"least {_FEWEST} clusters are needed"
        )


def _metric(run: Run, metric: str | None) -> str:
    """The metric of the curve. Raises RunError, before any work, where it cannot be measured."""
    chosen = metric or (run.manifest["suite"].get("attribute") or {}).get("metric") or "logit_diff"
    if is_discovered(chosen) or (chosen not in metric_names() and ":" not in chosen):
        raise RunError(f"no metric {chosen!r}{choices(chosen, metric_names())}, and module:function")
    require_metric(chosen)
    require_answers(prompts_of(run), chosen)
    return str(chosen)


def _tables(
    run: Run,
    models: Pairs,
    name: str,
    where: Sequence[Place],
    positions: Positions,
    k: int,
    draws: int,
    compute: Compute,
) -> Tables:
    states = states_of(run, models, name, where, positions)
    nulls = list(null_states(models, name, states.encoded, where, positions, draws))
    clusters = [item.prompt.cluster or item.prompt.id for item in states.encoded]
    prompts, seed = [item.prompt.id for item in states.encoded], models.suite.seed
    rows: dict[str, list[dict[str, object]]] = {"distances": [], "delta_spectrum": [], "delta_angles": []}
    for done, place in enumerate(where, 1):
        layer = Layer(
            *_sides(states, place, prompts),
            *([_sides(null, place, prompts) for kind, null in nulls if kind == wanted] for wanted in (ROUNDED, RANDOM)),
        )
        matrices = leading_writers(models.pair(name), place[1], max(RANKS))
        made = {
            "distances": distance_rows(layer, clusters, k, seed),
            "delta_spectrum": spectrum_rows(layer, clusters, seed),
            "delta_angles": angle_rows(layer, matrices, clusters, seed),
        }
        keys = {"site": place[0], "layer": place[1], "positions": positions, "n": len(clusters)}
        for table, found in made.items():
            rows[table] += [keys | row for row in found]
        compute.tell(f"representations {name}", done, len(where), f"layer {place[1]}")
    return {table: pd.DataFrame(found) for table, found in rows.items() if found}


def _curve(run: Run, models: Pairs, name: str, where: Sequence[Place], metric: str, compute: Compute) -> pd.DataFrame:
    pair, size = models.pair(name), models.suite.batch_size
    usable = answerable(encoded_of(run, models, name), metric)
    if metric == "first_divergence":
        usable = parted(pair, usable, size)
    found = curve(
        pair,
        usable,
        metric_of(metric, pair.tuned, batches(usable, size, pair.pad_id)),
        where,
        batch_size=4 * size,
        seed=models.suite.seed,
        tell=partial(compute.tell, f"curve {name}"),
    )
    return curve_rows(found, metric)


def _sides(states: States, place: Place, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Both models' states, a row a prompt."""
    return by_prompt(states, states.base[place], prompts), by_prompt(states, states.tuned[place], prompts)
