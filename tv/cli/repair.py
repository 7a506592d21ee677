"""`tv repair`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tv.cli.options import Base, Device, Dtype, Tuned
from tv.cli.prompt_options import prompt_sets, reads_prompts
from tv.cli.terminal import Shown, bar, interval, print_notes, print_table, say, wrote

if TYPE_CHECKING:
    import pandas as pd

    from tv.choosing.repair import Repaired

_SHOWN = 20


@reads_prompts
def repair(
    base: Base,
    tuned: Tuned,
    keep: Annotated[list[Path], typer.Option(help="Prompts that show the gain to keep; repeatable.")],
    restore: Annotated[list[Path], typer.Option(help="Prompts that show the damage to undo; repeatable.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write.")],
    keep_at_least: Annotated[float, typer.Option(help="The share of the gain that must be kept.")] = 0.95,
    granularity: Annotated[
        Literal["component", "module", "head"], typer.Option(help="The parts that have their own λ.")
    ] = "component",
    metric: Annotated[
        str | None,
        typer.Option(help="A behaviour metric.", show_default="NLL of the targets; without targets, of the texts"),
    ] = None,
    form: Annotated[Literal["checkpoint", "lora"], typer.Option("--as", help="The form of the result.")] = "checkpoint",
    rank: Annotated[int | None, typer.Option(help="With --as lora: the rank of every matrix.")] = None,
    out_dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="The dtype of the stored checkpoint.")
    ] = "float32",
    report: Annotated[
        Path | None,
        typer.Option(help="A directory for tables, figures and finished work.", show_default="OUTPUT-repair"),
    ] = None,
    draws: Annotated[int, typer.Option(help="Random choices of the same size, for comparison.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the halves and of the random choices.")] = 0,
    force: Annotated[bool, typer.Option(help="Replace an existing result.")] = False,
    batch_size: Annotated[int, typer.Option(help="Prompts in one forward pass.")] = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    **reading: Any,
) -> None:
    """Choose a λ for every part of T that keeps the gain and undoes the damage; write the model and what to expect.

    Example: tv repair data/models/base data/models/medical --keep data/prompts/medical.jsonl
    --restore data/prompts/general.jsonl -o repaired
    """
    import tv
    from tv.choosing.writing import beside

    with bar("repair") as progress:
        repaired = tv.repair(
            base,
            tuned,
            prompt_sets(keep, **reading),
            prompt_sets(restore, **reading),
            out=output,
            report=report,
            keep_at_least=keep_at_least,
            granularity=granularity,
            metric=metric,
            form=form,
            rank=rank,
            out_dtype=out_dtype,
            draws=draws,
            seed=seed,
            batch_size=batch_size,
            force=force,
            compute=tv.Compute(device, dtype, progress=progress),
        )
    _print_before(repaired.result["before"])
    _print_chosen(repaired.result["chosen"], keep_at_least)
    _print_scales(repaired.result["scales"])
    _say_reached(repaired, keep_at_least)
    print_notes(repaired.notes)
    wrote(beside(output, report, "repair"), "tables as .parquet and .csv, figure in repair.html; rerun to resume")
    wrote(output, "chosen on all prompts; the model card says how")


def _print_before(before: pd.DataFrame) -> None:
    rows: list[list[object]] = [
        [
            row.set,
            row.metric.replace("_", " "),
            row.prompts,
            row.clusters,
            row.base,
            row.tuned,
            row.change,
            interval(row.lo, row.hi),
        ]
        for row in before.itertuples()
    ]
    headings = ["set", "metric", "prompts", "clusters", "base", "tuned", "gain or damage", "95 % interval"]
    print_table("the effect of all of T", headings, rows)


def _print_chosen(chosen: pd.DataFrame, keep_at_least: float) -> None:
    rows: list[list[object]] = [
        [
            row["method"],
            _share(row, "kept"),
            _share(row, "undone"),
            Shown(row["undone_at"], _percent(row["undone_at"])),
            _share(row, "more_undone"),
            row["p"],
        ]
        for row in chosen.to_dict("records")
    ]
    title = "chosen on one half of the prompts, tested on the other; random choices: median, 5 % and 95 %"
    at = f"undone at {keep_at_least:.0%} kept"
    print_table(title, ["method", "gain kept", "damage undone", at, "beyond plain scaling", "p"], rows)


def _print_scales(scales: pd.DataFrame) -> None:
    if len(scales) > _SHOWN:
        say(f"{len(scales)} parts have their own λ: see the table of scales")
        return
    rows: list[list[object]] = [
        [
            row["layer"],
            row["part"],
            Shown(row["share"], f"{row['share']:.1%}"),
            _share(row, "gain_lost"),
            _share(row, "undone"),
            Shown(row["scale"], f"{row['scale']:.2f}"),
        ]
        for row in scales.to_dict("records")
    ]
    print_table(
        "λ of every part, and the effect of reverting it alone",
        ["layer", "part", "of ‖T‖²", "gain lost", "damage undone", "λ"],
        rows,
    )


def _say_reached(repaired: Repaired, keep_at_least: float) -> None:
    from tv.choosing.candidates import FITTED

    chosen = repaired.result["chosen"].set_index("method")
    kept, undone = (float(chosen.loc[FITTED, name]) for name in ("kept", "undone"))
    short = "" if kept >= keep_at_least else f", less than the {keep_at_least:.0%} asked for"
    say(f"on held-out prompts: {kept:.1%} of the gain kept{short}; {undone:.1%} of the damage undone")
    best = chosen.undone_at.dropna()
    if len(best):
        say(f"at {keep_at_least:.0%} kept on held-out prompts, {best.idxmax()} undoes most: {best.max():.1%}")
    if repaired.as_written is not None:
        kept, undone = repaired.as_written
        say(f"the written model keeps {kept:.1%} and undoes {undone:.1%} on all prompts, also those it was chosen on")


def _share(row: dict[str, Any], name: str) -> Shown:
    value, lo, hi = (float(row[name + end]) for end in ("", "_lo", "_hi"))
    if math.isnan(value):
        return Shown(None, "–")
    inside = "" if math.isnan(lo) else f" [{lo:.0%}, {hi:.0%}]"
    return Shown([value, lo, hi], f"{_percent(value)}{inside}")


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
