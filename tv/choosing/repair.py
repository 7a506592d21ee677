"""Repair: a scale for every part of T that keeps what tuning gained on some prompts and undoes its damage on others.

Fitted on half of the prompts and tested on the other half, then the other way round, so that every prompt is tested
with a choice that has not seen it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tv.checkpoints.live import LiveSource, load_model
from tv.checkpoints.opening import Source
from tv.checkpoints.vector import TuningVector
from tv.choosing.asked import ask, require_metric
from tv.choosing.candidates import FITTED, candidates, random_choices
from tv.choosing.crossfit import Candidate, CrossFit, Half
from tv.choosing.figures import frontier
from tv.choosing.ground import ground
from tv.choosing.tables import before_table, chosen_table, curve_table, scales_table
from tv.choosing.units import Granularity, scaled
from tv.choosing.writing import As, Written, beside, require_writable, write_choice
from tv.errors import InputError
from tv.experiments.cells import Cells
from tv.experiments.result import Result
from tv.prompts.behaviour import PromptSource, gather
from tv.runtime.compute import Compute
from tv.runtime.seeds import require_seed


@dataclass(frozen=True)
class Repaired:
    """What a repair found, and where it was written.

    Attributes:
        path: The checkpoint or adapter; None where none was asked for.
        result: Tables: `chosen`, a row per method with what it kept and undid on prompts that its choice had not seen;
            `curve`, the same at every point of every method; `scales`, a row per part of the model; `before`, gain and
            damage of the whole T. One figure.
        as_written: Gain kept and damage undone by what was written, on all prompts, which its choice has seen.
        notes: How the prompts and the weights were read, a line each.

    Examples:
        >>> from tv.experiments.result import Result
        >>> repaired = tv.Repaired(None, Result("repair", {}, {}), (0.97, 0.6), ())
        >>> kept, undone = repaired.as_written
    """

    path: Path | None
    result: Result
    as_written: tuple[float, float] | None
    notes: tuple[str, ...]


def repair(
    base: LiveSource,
    tuned: Source | TuningVector,
    keep: PromptSource | Sequence[PromptSource],
    restore: PromptSource | Sequence[PromptSource],
    *,
    out: str | Path | None = None,
    report: str | Path | None = None,
    keep_at_least: float = 0.95,
    granularity: Granularity = "component",
    metric: str | None = None,
    form: As = "checkpoint",
    rank: int | None = None,
    out_dtype: str = "float32",
    draws: int = 20,
    seed: int = 0,
    batch_size: int = 16,
    force: bool = False,
    compute: Compute = Compute(),
) -> Repaired:
    """Choose a scale λ in 0…1 for every part of T, so that its gain is kept and its damage is undone.

    The fitted scales are compared with choices made and tested on the same halves: whole parts reverted, plain
    scaling of all of T, trimming its smallest entries, removing its intruder dimensions, and random parts of the same
    ‖T‖². The file is chosen on all prompts, and the tested numbers say what to expect of it.

    Args:
        base: Whatever `tv.open_checkpoint` opens, or a live model, which is copied.
        tuned: Likewise, or the tuning vector T itself.
        keep: Prompts of what tuning is to keep: files, `tv.PromptSet`s or `tv.Prompt`s.
        restore: Prompts of what it damaged.
        out: The directory to write, whole or not at all.
        report: The directory for tables, figure and finished cells: the same call resumes. Without it, `out` with
            `-repair` added; in memory where there is no `out` either.
        keep_at_least: The share of the gain that a choice has to keep.
        granularity: What has a λ of its own: component, module or head.
        metric: One of the behaviour metrics. Without it the NLL of the targets; of sets without, that of their texts.
        form: What is written: "checkpoint" or "lora".
        rank: Of the adapter's matrices.
        out_dtype: What a checkpoint is stored in: "float32" or "bfloat16".
        draws: Random choices.
        seed: Of the halves and of the random choices.
        batch_size: Prompts in one forward pass.
        force: Replace what is at `out`.
        compute: Where to compute, and how to report progress; its dtype is float32.

    Returns:
        Tables, a figure, and what was written.

    Raises:
        InputError: Bad settings or prompts; no gain, or no damage that matters: there is nothing to choose.
        CheckpointError: An `out` that cannot be written, or models that do not belong together.

    Examples:
        >>> sets = [tv.PromptSet(file=f"data/prompts/{name}.jsonl") for name in ("medical", "general")]
        >>> repaired = tv.repair("data/models/base", "data/models/medical", *sets, draws=2, keep_at_least=0.9)
        >>> repaired.result["chosen"].method.tolist()[:3]
        ['fitted λ', 'reverted parts', 'plain scaling']
    """
    if not 0 < keep_at_least <= 1:
        raise InputError(f"keep at least {keep_at_least:g}: a share of the gain, above 0 and at most 1")
    if metric is not None:
        require_metric(metric)
    if draws < 1:
        raise InputError(f"{draws} random choices: give at least 1, to compare the fitted one with")
    require_seed(seed)
    target = Path(out) if out is not None else None
    place = beside(target, report, "repair")
    require_writable(target, form, rank, out_dtype, [base, tuned], force)
    rows = {"keep": gather(keep), "restore": gather(restore)}
    stands = ground(base, [tuned], [*rows["keep"], *rows["restore"]], granularity, compute)
    sets = {
        name: ask(prompts, stands.model, stands.tokenizer, metric, batch_size, name) for name, prompts in rows.items()
    }
    cross = CrossFit(stands, sets, Cells(place / "cells" if place is not None else None), seed, compute)
    found, intruders = candidates(cross)
    choices = {method: cross.choose(points, keep_at_least) for method, points in found.items()}
    random = random_choices(cross, choices[FITTED], draws)
    curve = curve_table(cross, found, random)
    tables = {
        "chosen": chosen_table(cross, choices, random, curve, keep_at_least),
        "curve": curve,
        "scales": scales_table(cross, choices[FITTED]),
        "before": before_table(cross),
    }
    result = Result("repair", tables, {_TITLE: frontier(curve, tables["chosen"], keep_at_least)})
    if place is not None:
        result.save(place)
    notes = [*cross.told, *([] if intruders else ["no intruder dimension: there is none to remove"]), *stands.notes]
    if target is None:
        return Repaired(None, result, None, tuple(notes))
    written = _written(cross, choices[FITTED], result, target, keep_at_least)
    path = write_choice(written, form=form, rank=rank, out_dtype=out_dtype, force=force, compute=compute)
    return Repaired(path, result, _as_written(cross, path), tuple(notes))


_TITLE = "Gain kept and damage undone, on prompts that no choice has seen"


def _as_written(cross: CrossFit, path: Path) -> tuple[float, float]:
    """Gain kept and damage undone by the files, loaded again."""
    model = load_model(path, base=cross.stands.base, device=cross.compute.device)
    values = {name: one.sign * one.values(model) for name, one in cross.sets.items()}
    return cross.shares(values, cross.seen["all"])


def _written(
    cross: CrossFit, choice: Mapping[Half, Candidate], result: Result, target: Path, keep_at_least: float
) -> Written:
    chosen = choice["all"].scales["all"].tolist()
    row = result["chosen"].iloc[0]
    expected = {name: round(float(row[name]), 6) for name in row.index if name.startswith(("kept", "undone"))}
    record = {"chosen_by": "tv repair", "keep_at_least": keep_at_least, "expected": expected}
    lines = [
        f"On prompts that the choice had not seen {_percent(row, 'kept')} of the gain was kept and",
        f"{_percent(row, 'undone')} of the damage undone (95 % intervals; each half of the prompts was tested with the",
        "choice of the other). The scales below were then chosen on all prompts: none is left to test this file.",
        "",
        "| part | layer | λ |",
        "| --- | --- | --- |",
        *(f"| {one.part} | {one.layer} | {one.scale:.3f} |" for one in result["scales"].itertuples()),
    ]
    moved = scaled(cross.vector, cross.stands.division, chosen, record)
    return Written(cross.stands.base, {moved: 1.0}, target, "Repaired by `tv repair`", tuple(lines))


def _percent(row: Any, name: str) -> str:
    value, lo, hi = (float(row[name + end]) for end in ("", "_lo", "_hi"))
    inside = "" if math.isnan(lo) else f" [{lo:.0%}, {hi:.0%}]"
    return f"{value:.1%}{inside}"
