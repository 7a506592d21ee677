"""What tuning did to weights and activations: a run of the program for each model and seed, over all its fine-tunes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import probes
import tv
from probes.errors import RunError
from probes.forecast import forecast
from probes.store.run import Run
from studies.real_models.models import SOURCES
from studies.real_models.stage import Stage
from studies.real_models.study import Study, training_stage, trainings
from studies.real_models.texts import TOKENS, domain, prompt_rows
from studies.real_models.training import Training
from tv.checkpoints.live import LiveSource
from tv.errors import CheckpointError
from tv.runtime.atomic import replacing, replacing_directory
from tv.stats.means import mean_interval

#: Relative errors of SSA's tail rule, as the source sets it, and wider.
EPSILONS = [0.01, 0.05, 0.1]
#: Tuned models that are nulls: a random vector of the norms of T, and one step of ordinary pretraining.
RANDOM, ONE_STEP = "random", "one-step"
#: CPU seconds of the weights of one fine-tune, per MiB of the blocks: singular values of every T, and its cosines.
WEIGHTS = 0.11
#: Forwards of a fine-tune's capture, with what it writes; of the noise floor, with what the base writes.
CAPTURED, FLOOR = 5.2, 4
#: CPU seconds in which a token's rows of one layer are made and written.
ROW = 1.2e-4
#: MiB that a token of the prompts takes in a run's tables, for each fine-tune.
ROWS = 0.012


def stages(study: Study) -> list[Stage]:
    """The nulls, and a run for each model and seed."""
    found = []
    for name in study.size.names:
        of_model = [one for one in trainings(study.size) if one.model == name]
        step = one_step(name)
        found += [training_stage(study, step, study.base(name), (f"base-{name}",)), _random(study, of_model[0])]
        found += [_reading(study, name, seed, of_model) for seed in study.size.seeds]
    return found


def one_step(name: str) -> Training:
    """One step of ordinary pretraining."""
    return Training(name, "general", "full", 0, steps=1, label=ONE_STEP)


def prompt_files(study: Study, names: Sequence[str], n: int | None = None) -> list[dict[str, Any]]:
    """The prompt sets of a suite: `n` texts of each domain that no fine-tune was trained on, or as the size says."""
    folder, sets, n = study.work / "prompts", [], n or study.size.prompts
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        rows = prompt_rows(domain(name, study.texts).held_out[:n], name)
        path = folder / f"{name}-{n}.jsonl"
        with replacing(path, RunError) as file:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sets.append({"file": str(path.resolve()), "domain": name})
    return sets


def recorded(job: probes.Job) -> tuple[Run, pd.DataFrame]:
    """Run a job; and what it took, beside what the program says beforehand: nothing where a part was done before."""
    said = forecast(job) if job.there is None else []
    cpu, wall = time.process_time(), time.monotonic()
    run = job.run()
    return run, pd.DataFrame(
        {
            "cpu_estimate": [sum(stage.cpu for stage in said) or None],
            "cpu": time.process_time() - cpu,
            "wall_estimate": sum(stage.wall for stage in said) or None,
            "wall": time.monotonic() - wall,
            "memory_estimate": max((stage.memory for stage in said), default=0) / 2**20 or None,
        }
    )


def write(folder: Path, tables: Mapping[str, pd.DataFrame], **of: object) -> None:
    """Tables as CSV with four digits, whole or not at all; `of` are columns in front that say what they are about."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_directory(folder, CheckpointError) as place:
        for name, table in tables.items():
            for column, value in reversed(of.items()):
                table.insert(0, column, value)
            table.to_csv(place / f"{name}.csv", index=False, float_format="%.4g")


def _random(study: Study, one: Training) -> Stage:
    """A random vector, whose norm in every parameter is that of the first fine-tune."""
    out, source = study.work / "nulls" / f"{one.model}.safetensors", SOURCES[one.model]
    work = partial(_write_random, study.base(one.model), study.tuned(one), out)
    return Stage(
        f"null-{one.model}", work, 7 + source.mib / 500, source.memory(0, 9), source.mib, out, (f"tune-{one.name}",)
    )


def _write_random(base: Path, tuned: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    tv.control(tv.extract(base, tuned), "random", seed=0).save(out)


def _reading(study: Study, name: str, seed: int, of_model: Sequence[Training]) -> Stage:
    read = [one for one in of_model if one.seed == seed and (not study.size.short or one.domain in study.size.deep)]
    ours = {f"{one.domain}-{one.method}": one for one in read}
    tuned: dict[str, Path] = {label: study.tuned(one) for label, one in ours.items()}
    needs = [f"tune-{one.name}" for one in ours.values()]
    if seed == study.size.seeds[0]:
        tuned |= {ONE_STEP: study.tuned(one_step(name)), RANDOM: study.work / "nulls" / f"{name}.safetensors"}
        needs += [f"tune-{one_step(name).name}", f"null-{name}"]
    stage, source = f"read-{name}-{seed}", SOURCES[name]
    tokens = study.size.prompts * sum(TOKENS[each] for each in study.size.domains[name])
    each = tokens * (CAPTURED * source.forward + ROW * source.layers) + WEIGHTS * source.blocks
    cpu = 40 + tokens * FLOOR * source.forward + len(tuned) * each
    memory, disk = source.memory(8, 0), len(tuned) * tokens * ROWS
    work = partial(_read, study, name, seed, tuned, study.results(stage))
    return Stage(
        stage, work, cpu, memory, disk, study.results(stage), tuple(needs), beside=(study.work / "runs" / stage,)
    )


def _read(study: Study, name: str, seed: int, tuned: Mapping[str, LiveSource], out: Path) -> None:
    suite = {
        "name": f"read-{name}-{seed}",
        "base": str(study.base(name).resolve()),
        "tuned": {label: str(Path(str(path)).resolve()) for label, path in tuned.items()},
        "prompts": prompt_files(study, study.size.domains[name]),
        "measure": ["gates", "contributions", "changes", "ledger", "behaviour"],
        "sites": ["gate", "attn_out", "mlp_out"],
        "epsilons": EPSILONS,
        "batch_size": 8,
        "seed": 0,
    }
    run, took = recorded(probes.prepare(suite, out=study.work / "runs" / f"read-{name}-{seed}"))
    tables = {
        "weights": _weights(run),
        "rounding": _rounding(study.base(name), tuned),
        "alignment": _alignment(run),
        "gates": _gates(run),
        "noise_floor": run["noise_floor"][["precision", "layer", "n", "flip_rate", "flip_rate_lo", "flip_rate_hi"]],
        "ledger": _ledger(run),
        "answers_nll": _behaviour(run),
        "forecasts": took.assign(stage=f"read-{name}-{seed}"),
    }
    write(out, tables, model=name, seed=seed)


def _weights(run: Run) -> pd.DataFrame:
    """A row a matrix: how far it moved, what of that bfloat16 would keep, and how many directions it takes.

    `apart` is 1 − the cosine of W and W + T.
    """
    columns = [
        *("tuned", "layer", "module", "numbers", "weight_norm", "delta_norm", "relative_norm", "apart"),
        *("changed_fraction_bf16", "noise_share", "stable_rank", "effective_rank"),
    ]
    table = run["weights"].assign(apart=lambda t: 1 - t.cosine.astype(np.float64))
    return table[(table["head"] == -1) & table.kind.isin(["linear", "embed"]) & ~table.tied.astype(bool)][columns]


def _rounding(base: Path, tuned: Mapping[str, LiveSource]) -> pd.DataFrame:
    """A row a tuned model: the squared norm of T, and of what saving W + T in bfloat16 changes."""
    under, rows = tv.open_checkpoint(base), []
    for label, source in tuned.items():
        over, moved, noise = tv.open_checkpoint(source, base=under), 0.0, 0.0
        for name in under.names:
            weight = over.read(name).float()
            moved += float((weight - under.read(name).float()).square().sum())
            noise += float((weight.bfloat16().float() - weight).square().sum())
        rows.append({"tuned": label, "moved": moved, "noise": noise})
    return pd.DataFrame(rows)


def _alignment(run: Run) -> pd.DataFrame:
    """A row a module type, side and rule: means over layers, and in how many layers T lies off its null."""
    table = run["alignment"]
    table = table[table["head"] == -1]
    by = ["tuned", "module", "side", "k_rule", "level", "null"]
    groups = table.groupby(by, observed=True, sort=False)
    return groups.agg(
        layers=("layer", "size"),
        kept=("k", "mean"),
        dim=("dim", "first"),
        ssa=("ssa", "mean"),
        ssa_null=("ssa_null", "mean"),
        kappa=("kappa", "mean"),
        kappa_sd=("kappa", "std"),
        ssa_z=("ssa_z", "mean"),
        above=("ssa_z", lambda z: int((z > 1.96).sum())),
        below=("ssa_z", lambda z: int((z < -1.96).sum())),
        at_ceiling=("at_ceiling", "sum"),
    ).reset_index()


def _gates(run: Run) -> pd.DataFrame:
    """A row a domain of prompts and layer: distances of the two gate patterns, intervals over prompts."""
    values = ["edit_distance", "chance_edit_distance", "flip_rate", "chance_flip_rate", "edit_kappa"]
    of_prompts = _of_prompts(run, "gates", "layer", {value: value for value in values})
    return _over_prompts(of_prompts, ["tuned", "domain", "layer"], values)


def _ledger(run: Run) -> pd.DataFrame:
    """A row a domain of prompts and module type: what of an output's change its own new directions make."""
    values = [
        *("new_share", "new_share_null", "new_share_of_w", "new_share_10", "new_share_10_null", "new_share_10_of_w"),
        *("direct_share", "inherited_share", "interaction_share", "direct_norm", "direct_null"),
    ]
    means = {value: value for value in values} | {"new_share_above_null": "new_share - new_share_null"}
    return _over_prompts(_of_prompts(run, "ledger", "module", means), ["tuned", "domain", "module"], [*means])


def _behaviour(run: Run) -> pd.DataFrame:
    """A row a prompt and model: nats a token of the answer."""
    return run.sql(
        "SELECT b.model AS tuned, p.domain, p.cluster, b.prompt_id, b.value AS nll FROM behaviour b "
        "JOIN prompts p USING (prompt_id) WHERE b.metric = 'target_nll_per_token' ORDER BY ALL"
    )


def _of_prompts(run: Run, table: str, by: str, means: Mapping[str, str]) -> pd.DataFrame:
    """A row a prompt and `by`: means over its places."""
    said = ", ".join(f"avg({value}) AS {name}" for name, value in means.items())
    return run.sql(
        f"SELECT t.tuned, p.domain, t.{by}, p.cluster, t.prompt_id, {said} "
        f"FROM {table} t JOIN prompts p USING (prompt_id) GROUP BY ALL ORDER BY ALL"
    )


def _over_prompts(table: pd.DataFrame, by: list[str], values: list[str]) -> pd.DataFrame:
    """Means over the prompts of a group, with intervals that draw clusters of them."""
    rows = []
    for key, group in table.groupby(by, observed=True, sort=False):
        mean = mean_interval(group[values].to_numpy(np.float64), group.cluster.fillna(group.prompt_id).tolist())
        row = dict(zip(by, key, strict=True)) | {"n": int(np.max(mean.n))}
        for i, value in enumerate(values):
            row |= {value: mean.mean[i], f"{value}_lo": mean.lo[i], f"{value}_hi": mean.hi[i]}
        rows.append(row)
    return pd.DataFrame(rows)
