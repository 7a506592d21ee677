"""Barriers between models, the path of a training, the order of neurons, and LoRA inside and outside of T.

This is question 7 of the study, with two questions that the source leaves open: whether permutation alignment finds
anything but the identity, and whether LoRA learns more inside the tuning subspace than elsewhere.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel

import tv
from studies.real_models.models import SOURCES
from studies.real_models.reading import write
from studies.real_models.stage import Stage
from studies.real_models.study import Study, training_stage, trainings
from studies.real_models.texts import TOKENS, domain
from studies.real_models.training import RANK, Training
from tv.checkpoints.live import load_model
from tv.errors import CheckpointError
from tv.evaluation.paired import difference
from tv.runtime.atomic import replacing_directory

#: Points of θ + αT; of a line between two tuned models; inside a line between neighbouring checkpoints.
PATH, BETWEEN, INSIDE = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5), (0, 0.25, 0.5, 0.75, 1), (0.5,)
#: A LoRA's first, frozen A: T's leading input directions, random ones outside of them, and random ones.
STARTS = ("subspace", "orthogonal", "random")


def stages(study: Study) -> list[Stage]:
    """Paths and lines, orders, the trajectory, and where the size has LoRA, those that start from T."""
    full = [one for one in trainings(study.size) if one.method == "full"]
    full = [one for one in full if not study.size.short or one.domain in study.size.deep]
    first_of = {(one.model, one.domain): one for one in reversed(full)}
    found = []
    for one in full:
        first = first_of[one.model, one.domain]
        found += [_line(study, None if one == first else first, one), _order(study, one)]
        found += [_trajectory_stage(study, one)] if one.checkpoints > 1 else []
    for one in {one.model: one for one in reversed(full)}.values():
        found.append(_control(study, one))
    return found + (_loras(study, full[0]) if "lora" in study.size.methods else [])


def forward(study: Study, one: Training, points: float, texts: int) -> float:
    """CPU seconds of the loss of so many texts at so many points, each of which moves all weights."""
    source = SOURCES[one.model]
    return 7 + source.mib / OPENED + points * (texts * TOKENS[one.domain] * source.everywhere + source.mib / MOVED)


#: MiB of a checkpoint that is written in bfloat16 and whose distances are measured, twice, in a CPU second.
ROUNDED = 50
#: MiB of weights that a CPU second opens, moves to another point, and matches with the base's.
OPENED, MOVED, MATCHED = 125, 2000, 60


def prompts_of(study: Study, one: Training, n: int) -> list[tv.Prompt]:
    """Held-out texts of what a model was tuned on."""
    texts = domain(one.domain, study.texts).held_out[:n]
    return [tv.Prompt(text.id, one.domain, one.domain, text.text, text.target, cluster=text.cluster) for text in texts]


def _of(one: Training) -> dict[str, object]:
    return {"model": one.model, "seed": one.seed, "domain": one.domain, "method": one.method}


def _line(study: Study, first: Training | None, one: Training) -> Stage:
    """From the base through a tuned model and beyond it; or from one seed's tuned model to another's."""
    name = f"path-{one.name}" if first is None else f"between-{first.name}-{one.seed}"
    needs = (f"base-{one.model}", f"tune-{one.name}", *(() if first is None else (f"tune-{first.name}",)))
    points = PATH if first is None else BETWEEN
    cpu, memory = forward(study, one, len(points), study.size.prompts), SOURCES[one.model].memory(2.2, 11)
    work = partial(_write_line, study, first, one, points, study.results(name))
    return Stage(name, work, cpu, memory, 1, study.results(name), needs)


def _write_line(study: Study, first: Training | None, one: Training, points: Sequence[float], out: Path) -> None:
    start = study.base(one.model) if first is None else study.tuned(first)
    path = tv.path(start, study.tuned(one), prompts_of(study, one, study.size.prompts), alphas=points, batch_size=1)
    label = "base" if first is None else f"seed {first.seed}"
    write(out, {"path": _losses(path, "alpha").assign(start=label, written="as trained")}, **_of(one))


def _losses(rows: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Of what is measured along a line, the loss and what stands out of it."""
    columns = [*by, "metric", "value", "lo", "hi", "prompts", "clusters"]
    return rows[rows.metric.isin(["loss", "excess", "barrier", "rise"])][columns]


def _order(study: Study, one: Training) -> Stage:
    """Whether neurons, heads, gains or bases are written as the base's are."""
    name, source = f"align-{one.name}", SOURCES[one.model]
    work = partial(_write_order, study, one, study.results(name))
    needs = (f"base-{one.model}", f"tune-{one.name}")
    return Stage(name, work, 8 + source.mib / MATCHED, source.memory(0, 11), 1, study.results(name), needs)


def _write_order(study: Study, one: Training, out: Path) -> None:
    found = tv.align(study.base(one.model), study.tuned(one))
    write(out, {"align": _matched(found).assign(written="as trained")}, **_of(one))


def _control(study: Study, one: Training) -> Stage:
    """A tuned model written differently: what is found between base and it, and the barrier between it and itself."""
    name, source = f"rewritten-{one.model}", SOURCES[one.model]
    work = partial(_write_control, study, one, study.results(name))
    cpu = forward(study, one, len(BETWEEN), study.size.prompts) + 2 * source.mib / MATCHED
    needs = (f"base-{one.model}", f"tune-{one.name}")
    return Stage(name, work, cpu, source.memory(3, 10), 1, study.results(name), needs)


def _write_control(study: Study, one: Training, out: Path) -> None:
    tuned = study.tuned(one)
    model = load_model(tuned)
    _write_differently(model)
    found = tv.align(study.base(one.model), model)
    path = tv.path(tuned, model, prompts_of(study, one, study.size.prompts), alphas=BETWEEN, batch_size=1)
    tables = {"align": _matched(found), "path": _losses(path, "alpha").assign(start="itself")}
    write(out, {name: table.assign(written="differently") for name, table in tables.items()}, **_of(one))


@torch.no_grad()
def _write_differently(model: PreTrainedModel) -> None:
    """The same function: neurons of every GLU in another order, its up rows doubled and its down columns halved."""
    torch.manual_seed(0)
    for block in model.model.layers:
        order = torch.randperm(block.mlp.up_proj.out_features)
        for weight, dim, factor in (("gate_proj", 0, 1.0), ("up_proj", 0, 2.0), ("down_proj", 1, 0.5)):
            parameter = block.mlp.get_submodule(weight).weight
            parameter.copy_(factor * parameter.index_select(dim, order))


def _matched(found: pd.DataFrame) -> pd.DataFrame:
    """A row a kind of symmetry: the most that any layer moves; and what all of them explain of ‖T‖²."""
    kinds = found.groupby("kind", sort=False).agg(
        layers=("layer", "size"),
        moved=("moved_fraction", "max"),
        sign_flipped=("sign_flipped_fraction", "max"),
        rescaled=("scale_moved_fraction", "max"),
        least_score=("mean_score", "min"),
        gain=("gain", "max"),
    )
    same = found.attrs["sameness"]
    explained = 1 - same["after"] / same["before"]
    return kinds.reset_index().assign(
        squared=same["before"], left=same["after"], explained=explained, sentence=same["sentence"]
    )


def _trajectory_stage(study: Study, one: Training) -> Stage:
    name, source, n = f"trajectory-{one.name}", SOURCES[one.model], one.checkpoints
    points = 1 + n + n * len(INSIDE) + len(INSIDE) + n / 2  # ends, between them, base to last, and tokens
    cpu = forward(study, one, points, study.size.prompts) + n * source.mib / ROUNDED
    work = partial(_write_trajectory, study, one, study.results(name))
    needs, memory = (f"base-{one.model}", f"tune-{one.name}"), source.memory(3.9, 11)
    return Stage(name, work, cpu, memory, 1, study.results(name), needs)


def _write_trajectory(study: Study, one: Training, out: Path) -> None:
    """The checkpoints as they were trained, in float32, and as they would be published, in bfloat16."""
    base, tuned, place = study.base(one.model), study.tuned(one), study.work / "trajectory" / one.name
    kept = {path.name.replace("step", "checkpoint"): path for path in tuned.glob("step-*")}
    kept |= {f"checkpoint-{one.steps}": tuned}
    shutil.rmtree(place / "bfloat16", ignore_errors=True)  # of a process that was killed
    for name, path in kept.items():
        link = place / "float32" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
        load_model(path).to(torch.bfloat16).save_pretrained(place / "bfloat16" / name)
    prompts = prompts_of(study, one, study.size.prompts)
    along = tv.trajectory(
        base, [place / "float32"], prompts, alphas=INSIDE, out=place / "measured", batch_size=1
    )  # finished points are kept there
    rounded = tv.trajectory(base, [place / "bfloat16"])
    shutil.rmtree(place / "bfloat16")
    both = {"float32": along, "bfloat16": rounded}
    tables = {
        "trajectory": pd.concat([found["checkpoints"].assign(dtype=dtype) for dtype, found in both.items()]),
        "trajectory_modules": along["modules"].groupby(["step", "module"], sort=False)["share"].mean().reset_index(),
        "trajectory_turned": along["turned"],
        "trajectory_behaviour": along["behaviour"].query("metric == 'loss'"),
        "trajectory_barriers": along["connectivity"],
    }
    write(out, {name: table.drop(columns="domain", errors="ignore") for name, table in tables.items()}, **_of(one))


def _loras(study: Study, full: Training) -> list[Stage]:
    """LoRA with a frozen A from T of a full fine-tune of the same texts, or from elsewhere, at equal budget."""
    base, source, name = study.base(full.model), SOURCES[full.model], f"starts-{full.name}"
    starts = study.work / "starts" / full.name
    work, needs = partial(_write_starts, study, full, starts), (f"base-{full.model}", f"tune-{full.name}")
    found = [Stage(name, work, 14 + source.mib / DECOMPOSED, source.memory(1, 9), 60, starts, needs)]
    lora = replace(full, method="lora", checkpoints=0)
    tunes = {
        (start, seed): replace(lora, seed=seed, adapter=start) for start, seed in product(STARTS, study.size.seeds)
    }
    for (start, _), one in tunes.items():
        found.append(training_stage(study, one, base, (f"base-{full.model}", name), starts / start))
    for seed in study.size.seeds:
        tunes |= {("both trained", seed): replace(lora, seed=seed)}
        tunes |= {("full", seed): replace(full, seed=seed, checkpoints=0)}
    compared = f"subspace-{full.model}"
    work = partial(_compare, study, full, tunes, study.results(compared))
    after = tuple(f"tune-{one.name}" for one in tunes.values())
    return [*found, Stage(compared, work, 4, 600, 1, study.results(compared), after)]


#: MiB of weights whose leading directions are found in a CPU second, twice over.
DECOMPOSED = 60


def _write_starts(study: Study, full: Training, out: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = study.base(full.model)
    vector = tv.extract(base, study.tuned(full))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing_directory(out, CheckpointError) as folder:
        tv.lora_init(base, vector, out=folder / "subspace", rank=RANK, mode="subspace")
        tv.lora_init(base, vector, out=folder / "orthogonal", rank=RANK, mode="orthogonal")
        torch.manual_seed(0)
        settings = LoraConfig.from_pretrained(folder / "subspace")
        get_peft_model(load_model(base), settings).save_pretrained(folder / "random")


def _compare(study: Study, full: Training, tunes: dict[tuple[str, int], Training], out: Path) -> None:
    """Losses on held-out texts after training; those of the other starts paired with the random one's, text by text.

    A LoRA of which both factors are trained, and a full fine-tune, move by steps of another size: they stand beside.
    """
    losses = {key: pd.read_csv(study.tuned(one) / "held_out.csv") for key, one in tunes.items()}
    rows = []
    for (start, seed), found in losses.items():
        row = {"seed": seed, "start": start, "before": found.before.mean(), "after": found.after.mean()}
        if start in STARTS and start != "random":
            gap = difference(losses["random", seed].after, found.after, found.cluster.astype(str).tolist())
            row |= {"less_random": gap.difference, "lo": gap.lo, "hi": gap.hi, "p": gap.p}
        rows.append(row | {"texts": len(found)})
    write(out, {"subspace": pd.DataFrame(rows)}, model=full.model, domain=full.domain)
