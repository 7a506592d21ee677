"""`tv trajectory`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tv.cli.options import Base, Device
from tv.cli.prompt_options import prompt_sets, reads_prompts
from tv.cli.terminal import Shown, bar, interval, number, print_notes, print_table, say, wrote
from tv.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_ROUNDING = 1e-5  # nats; float32 logits resolve nothing smaller


@reads_prompts
def trajectory(
    base: Base,
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT…",
            help="Checkpoints or adapters of one training run, or the directory that holds them as checkpoint-…",
        ),
    ],
    prompts: Annotated[
        list[Path] | None, typer.Option(help="Prompt file: JSONL, JSON, CSV, TSV or Parquet; repeatable.")
    ] = None,
    points: Annotated[
        int, typer.Option(help="Points between neighbouring checkpoints at which the loss is computed.")
    ] = 3,
    batch_size: Annotated[int, typer.Option(help="Prompts in one forward pass.")] = 16,
    device: Device = "cpu",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A directory for tables, figures and finished work; rerun to resume."),
    ] = None,
    **reading: Any,
) -> None:
    """Follow a training run through its checkpoints: how straight, over which barriers, and what changed when.

    Example: tv trajectory data/models/base data/models/medical data/models/math --prompts data/prompts/medical.jsonl
    """
    if points < 1:
        raise InputError(f"--points {points}: a line between two checkpoints needs at least one point")
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; -o must name a directory")
    sets = prompt_sets(prompts, **reading) if prompts else None
    import numpy as np

    import tv

    alphas = [float(alpha) for alpha in np.linspace(0, 1, points + 2)[1:-1]]
    with bar("trajectory") as progress:
        compute = tv.Compute(device, progress=progress)
        found = tv.trajectory(
            base, checkpoints, sets, alphas=alphas, out=output, batch_size=batch_size, compute=compute
        )
    _print_distances(found["checkpoints"])
    if "connectivity" in found.tables:
        _print_connectivity(found["connectivity"])
    _print_turned(found["turned"])
    print_notes(found["checkpoints"].attrs.get("notes", ()))
    if output is not None:
        wrote(output / "trajectory.html", "tables and figures of the trajectory")


def _print_distances(rows: pd.DataFrame) -> None:
    columns = [
        "checkpoint",
        "‖T‖",
        "step's length",
        "of it rounding",
        "path ÷ chord",
        "random walk",
        "cos(step before)",
    ]
    names = ["checkpoint", "norm", "length", "noise", "straightness", "straightness_walk", "cosine_previous"]
    print_table("distance along the path", columns, rows[names].to_numpy(object).tolist())
    last = rows.iloc[-1]
    walk = f"1 is a straight line, {number(last.straightness_walk)} a random walk of these steps"
    above = last.path_above_noise / last.chord if last.chord else math.nan
    say(
        f"the path is {number(last.straightness)} times its chord ({walk}); without rounding at most "
        f"{number(above)} times"
        if last.noise and abs(above - last.straightness) > 0.005
        else f"the path is {number(last.straightness)} times its chord ({walk})"
    )


def _print_connectivity(rows: pd.DataFrame) -> None:
    whole = rows[rows.domain == "all"]
    table: list[list[object]] = [
        [f"{row['from']} → {row['to']}", row.loss_from, row.loss_to, row.barrier, interval(row.lo, row.hi)]
        for _, row in whole.iterrows()
    ]
    print_table("straight lines between neighbours, nats", ["line", "loss", "to", "barrier", "95 % interval"], table)
    unclear = whole[whole.lo.isna()]
    blocked = whole[whole.rise_lo > _ROUNDING]
    if len(unclear):
        say("too few prompts to say whether there are barriers")
    elif len(blocked):
        say(f"a barrier higher than both ends on {len(blocked)} of {len(whole)} lines")
    else:
        say("no line rises above both of its ends beyond noise")


def _print_turned(rows: pd.DataFrame) -> None:
    for kind, of in rows.groupby("kind", sort=False):
        shown = of
        if kind == "module":  # by name: the median over layers
            told = of[of.said == "turned"]
            names = told.what.str.extract(r"^layer -?\d+ (\S+)")[0]
            middle = told.groupby(names, sort=False)["step"].median()
            table: list[list[object]] = [[name, Shown(step, f"{step:.1f}")] for name, step in middle.items()]
            print_table("modules: half of the last ‖T‖, median over layers", ["module", "at step"], table)
            if len(still := of[of.said != "turned"]):
                said = still.said.value_counts()
                say("; ".join(f"{n} of {len(of)} modules: {what}" for what, n in said.items()))
            continue
        table = [
            [
                repr(row.what) if kind == "token" else row.what,
                _when(row.step),
                interval(row.lo, row.hi),
                row.change,
                row.said,
            ]
            for row in shown.itertuples()
        ]
        change = "loss, last − base" if kind == "domain" else "log-probability, last − base"
        print_table(
            f"{kind}s: when half of the change is reached", [kind, "at step", "95 % interval", change, "said"], table
        )


def _when(step: float) -> Shown:
    return Shown(step, "" if math.isnan(step) else f"{step:.1f}")
