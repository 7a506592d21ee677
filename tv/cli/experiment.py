"""`tv experiment`: the source's experiments, a command each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tv.cli.commands import command
from tv.cli.evaluate import BatchSize, Limit, Tasks
from tv.cli.help_texts import Command
from tv.cli.options import Base, Cache, Device, Dtype, Engine, Workers, named
from tv.cli.prompt_options import chat_of, converses
from tv.cli.terminal import Shown, bar, interval, number, print_table, wrote
from tv.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(no_args_is_help=True, help="The experiments of the source: negation, addition, SSA and lineage.")

Sides = Annotated[
    list[str],
    typer.Argument(metavar="[NAME=]TUNED", help="Tuned models; the default name is the last part of the path."),
]
Out = Annotated[
    Path, typer.Option("-o", "--output", help="A directory for results and finished work; rerun to resume.")
]
Draws = Annotated[int, typer.Option(help="Bootstrap resamples of items (of whole clusters) where there is no formula.")]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
Scale = Annotated[
    list[float] | None, typer.Option("--scale", help="A λ of the grid; repeatable.", show_default="0, 0.1, …, 1.5")
]


@app.command(cls=Command)
@command
@converses
def negation(
    base: Base,
    tuned: Sides,
    task: Tasks,
    output: Out,
    scale: Scale = None,
    parts: Annotated[
        str, typer.Option(help="What is negated: whole, or also each component or layer alone.")
    ] = "whole",
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="A control vector in T's place: random, shuffled, spectrum …; repeatable.", show_default="random"
        ),
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    draws: Draws = 2000,
    seed: Seed = 0,
    **talk: Any,
) -> None:
    """Measure θ_tuned − λT on every task for λ from 0 to 1.5, next to a random vector with T's norms.

    Example: tv experiment negation data/models/base data/models/medical --task data/tasks/medical_cloze.yaml -o out
    """
    from tv import Compute
    from tv.experiments import negation as experiment
    from tv.experiments.negating import SCALES

    settings = _settings(output, limit, talk, batch_size, seed) | {"draws": draws}
    with bar("negation") as progress:
        result = experiment(
            base,
            named(tuned),
            task,
            scales=scale or SCALES,
            parts=parts,  # type: ignore[arg-type]
            controls=tuple(control or ("random",)),
            compute=Compute(device, dtype, progress=progress),
            **settings,
        )
    summary = result["summary"]
    _print(
        "at λ = 1: has the base's behaviour returned?",
        summary,
        ["tuned", "part", "vector", "task", "metric", "value_0", "value_1"],
        "difference",
        ["p_tuned", "returned", "follows"],
    )
    _said(output, "negation")


@app.command(cls=Command)
@command
def ssa(
    base: Base,
    tuned: Sides,
    output: Out,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="Relative error of the kept subspace; repeatable.", show_default="0.01, 0.05, 0.1"),
    ] = None,
    null: Annotated[
        str, typer.Option(help="What SSA is compared with: rotation, gaussian, row_scale or shuffle.")
    ] = "rotation",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    workers: Workers = 1,
    engine: Engine = "local",
    cache: Cache = None,
) -> None:
    """Measure SSA layer by layer for one or more tuned models, on both sides, next to its null.

    Example: tv experiment ssa data/models/base data/models/medical data/models/math -o out
    """
    from tv import Compute
    from tv.experiments import ssa as experiment
    from tv.measures.ssa import EPSILONS

    with bar("ssa") as progress:
        result = experiment(
            base,
            named(tuned),
            epsilons=tuple(epsilon or EPSILONS),
            null=null,
            out=output,
            compute=Compute(device, dtype, False, workers, engine, cache, progress),
        )
    modules = result["modules"]
    middle = f"ε = {sorted(epsilon or EPSILONS)[len(epsilon or EPSILONS) // 2]:g}"
    _print(
        "mean over layers, and the number of layers where SSA is above or below its null",
        modules[(modules.side != "two_sided") & modules["at"].isin(["10 %", middle])],
        ["tuned", "module", "side", "at", "ssa", "ssa_null", "kappa"],
        None,
        ["layers", "above", "below"],
    )
    _said(output, "ssa")


@app.command(cls=Command)
@command
@converses
def addition(
    base: Base,
    tuned: Sides,
    task: Tasks,
    output: Out,
    method: Annotated[
        list[str] | None, typer.Option(help="A method of tv apply; repeatable.", show_default="sum")
    ] = None,
    scale: Annotated[
        list[float] | None, typer.Option(help="A λ of the grid; repeatable.", show_default="0.3, 0.5, 0.7, 1")
    ] = None,
    grid: Annotated[
        str, typer.Option(help="common: one λ for all vectors of a subset; product: one for each.")
    ] = "common",
    target: Annotated[
        list[str] | None,
        typer.Option(help="NAME=TASK: a task that the vector NAME is for; repeatable.", show_default="all tasks"),
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    **talk: Any,
) -> None:
    """Add every subset of the vectors by every method; λ is chosen on one half of the items and tested on the other.

    Example: tv experiment addition data/models/base data/models/medical data/models/math --method sum --method tsv-m
    --task data/tasks/medical_cloze.yaml --task data/tasks/arithmetic.yaml --target medical=medical_cloze
    --target math=arithmetic -o out
    """
    from tv import Compute
    from tv.experiments import addition as experiment
    from tv.experiments.adding import SCALES

    settings = _settings(output, limit, talk, batch_size, seed)
    with bar("addition") as progress:
        result = experiment(
            base,
            named(tuned),
            task,
            methods=tuple(method or ("sum",)),
            scales=tuple(scale or SCALES),
            grid=grid,  # type: ignore[arg-type]
            targets=_targets(target or []),
            compute=Compute(device, dtype, progress=progress),
            **settings,
        )
    chosen = result["chosen"]
    shown = ["subset", "method", "scales", "task", "base", "value"]
    title = "λ chosen on one half of the items, tested on the other; a gain above 0 is better"
    _print(title, chosen, shown, "gain", ["p", "best_single"])
    _said(output, "addition")


@app.command(cls=Command)
@command
@converses
def lineage(
    lineages: Annotated[list[str], typer.Argument(metavar="NAME=PARENT:TUNED", help="Two or more lineages.")],
    task: Tasks,
    output: Out,
    scale: Scale = None,
    cross: Annotated[bool, typer.Option(help="Also subtract the vector of the other lineage.")] = True,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    draws: Draws = 2000,
    seed: Seed = 0,
    **talk: Any,
) -> None:
    """Compare how well the vectors of a base lineage and of an instruct lineage withstand negation.

    Example: tv experiment lineage base=data/models/base:data/models/medical
    instruct=data/models/instruct:data/models/medical-from-instruct --task data/tasks/medical_cloze.yaml -o out
    """
    from tv import Compute
    from tv.experiments import lineage as experiment
    from tv.experiments.negating import SCALES

    settings = _settings(output, limit, talk, batch_size, seed) | {"draws": draws}
    with bar("lineage") as progress:
        result = experiment(
            _lineages(lineages),
            task,
            scales=scale or SCALES,
            cross=cross,
            compute=Compute(device, dtype, progress=progress),
            **settings,
        )
    shown = ["lineage", "vector", "task", "metric", "half", "half_lo", "half_hi", "area", "area_lo", "area_hi"]
    _print(
        "λ at which half of the behaviour is left, and the mean of what is left over 0 ≤ λ ≤ 1",
        result["robustness"],
        shown,
        None,
        [],
    )
    shown = ["first", "second", "task", "metric", "half", "half_lo", "half_hi", "area", "area_lo", "area_hi"]
    if len(result["difference"]):
        _print("first minus second, their own vectors", result["difference"], shown, None, [])
    _said(output, "lineage")


def _settings(out: Path, limit: int | None, talk: dict[str, Any], batch_size: int, seed: int) -> dict[str, Any]:
    return {
        "out": out,
        "limit": limit,
        "chat": chat_of(**talk),
        "batch_size": batch_size,
        "seed": seed,
    }


def _targets(given: list[str]) -> dict[str, list[str]] | None:
    targets: dict[str, list[str]] = {}
    for text in given:
        name, equals, task = text.partition("=")
        if not equals or not name or not task:
            raise InputError(f"--target {text}: give NAME=TASK, a vector and the task it is for")
        targets.setdefault(name, []).append(task)
    return targets or None


def _lineages(given: list[str]) -> dict[str, tuple[str, str]]:
    lineages = {}
    for text in given:
        name, equals, both = text.partition("=")
        parent, colon, tuned = both.partition(":")
        if not (equals and colon and name and parent and tuned):
            raise InputError(f"{text!r}: give a lineage as NAME=PARENT:TUNED")
        lineages[name] = (parent, tuned)
    return lineages


def _print(title: str, frame: pd.DataFrame, columns: list[str], merged: str | None, after: list[str]) -> None:
    """The columns as they are, then the column `merged` with its interval in one cell, then the others."""
    rows: list[list[object]] = []
    for row in frame.to_dict("records"):
        cell = [_with_interval(*(row[merged + end] for end in ("", "_lo", "_hi")))] if merged else []
        rows.append([*(row[name] for name in columns), *cell, *(row[name] for name in after)])
    headings = [*columns, *([f"{merged} [95 %]"] if merged else []), *after]
    print_table(title, [heading.replace("_", " ") for heading in headings], rows)


def _with_interval(value: float, lo: float, hi: float) -> Shown:
    return Shown([value, lo, hi], f"{number(value)} {interval(lo, hi).text}")


def _said(out: Path, name: str) -> None:
    wrote(out, f"tables as .parquet and .csv, figures in {name}.html")
