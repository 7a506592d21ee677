"""Which parts cause what tuning taught: a run with attribution for each model and domain, on that domain's texts."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import probes
from probes.store.run import Run
from studies.real_models.models import SOURCES
from studies.real_models.reading import prompt_files, recorded, write
from studies.real_models.stage import Stage
from studies.real_models.study import Study, deep
from studies.real_models.texts import TOKENS
from studies.real_models.training import Training
from tv.stats.means import mean_interval

#: Forwards over its prompts that a run takes: 5.5 nodes of path at 5.5, 24 units grafted and reverted at a half and
#: their control, and the capture.
FORWARDS = 30 + 24 + 20 + 6
#: What the losses are attributed by: the answer, so that long and short ones count alike.
METRIC = "target_nll_per_token"


def stages(study: Study) -> list[Stage]:
    """A run for each of the fine-tunes that are looked into further."""
    return [_causing(study, one) for one in deep(study.size)]


def _causing(study: Study, one: Training) -> Stage:
    stage, source = f"cause-{one.model}-{one.domain}", SOURCES[one.model]
    cpu = 30 + study.size.prompts * TOKENS[one.domain] * FORWARDS * source.forward + 0.15 * source.mib
    work = partial(_cause, study, one, study.results(stage))
    run = study.work / "runs" / stage
    return Stage(stage, work, cpu, source.memory(8, 3), 25, study.results(stage), (f"tune-{one.name}",), (run,))


def _cause(study: Study, one: Training, out: Path) -> None:
    suite = {
        "name": out.name,
        "base": str(study.base(one.model).resolve()),
        "tuned": {"tuned": str(study.tuned(one).resolve())},
        "prompts": prompt_files(study, [one.domain]),
        "measure": ["gates", "changes", "ledger", "behaviour"],
        "sites": ["gate", "attn_out", "mlp_out"],
        "attribute": {"metric": METRIC, "granularity": ["component", "module"], "curves": False, "control_draws": 8},
        "batch_size": 8,
        "seed": 0,
    }
    run, took = recorded(probes.prepare(suite, out=study.work / "runs" / out.name))
    tables = {
        "causes": _causes(run),
        "by_type": _by_type(run),
        "checks": run["checks"].drop(columns="tuned"),
        "agreement": run["agreement"].drop(columns="tuned"),
        "sampled": run["sampled"].drop(columns="tuned"),
        "controls": run["control_draws"].drop(columns="tuned"),
        "links": _links(run),
        "forecasts": took.assign(stage=out.name),
    }
    write(out, tables, model=one.model, seed=one.seed, of=one.domain)


def _causes(run: Run) -> pd.DataFrame:
    """A row a component and method, over all prompts."""
    columns = [
        *("layer", "component", "method", "direction", "control", "effect", "lo", "hi", "lo_all", "hi_all", "p", "q"),
        *("n", "held_out", "within_noise", "chosen"),
    ]
    effects = run["effects"]
    return effects[(effects.granularity.isin(["component", "all"])) & (effects.domain == "all")][columns]


def _by_type(run: Run) -> pd.DataFrame:
    """What `path` gives all matrices of one kind, summed over layers: the sum over kinds is the whole change.

    `share_of_norm` is the kind's share of ‖T‖², which is what a T without direction would suggest.
    """
    per_prompt = run.sql(
        "SELECT e.module, p.cluster, e.prompt_id, sum(e.effect) AS effect FROM prompt_effects e "
        "JOIN prompts p USING (prompt_id) WHERE e.granularity = 'module' AND e.method = 'path' AND e.control = '' "
        "GROUP BY ALL ORDER BY ALL"
    )
    whole = per_prompt.groupby("prompt_id")["effect"].sum().mean()
    weights = run["weights"]
    weights = weights[(weights["head"] == -1) & ~weights.tied.astype(bool)]
    energy = (weights.delta_norm.astype(np.float64) ** 2).groupby(weights.module, observed=True).sum()
    rows = []
    for module, group in per_prompt.groupby("module", sort=False):
        mean = mean_interval(group.effect.to_numpy(np.float64), group.cluster.fillna(group.prompt_id).tolist())
        row = {"module": module, "effect": float(mean.mean), "lo": float(mean.lo), "hi": float(mean.hi)}
        row |= {"share": float(mean.mean) / whole, "share_of_norm": energy.get(module, np.nan) / energy.sum()}
        rows.append(row | {"n": int(mean.n)})
    return pd.DataFrame(rows)


def _links(run: Run) -> pd.DataFrame:
    """A row a matrix: measures of its weights, and the effect that path gives it.

    The run's own correlations take what is within the noise of bfloat16 for equal; almost every single matrix is.
    """
    columns = ["layer", "module", "relative_norm", "ssa_left", "kappa_left", "ssa_right", "kappa_right", "path"]
    table = run["link"]
    return table[table.kind == "module"][columns]
