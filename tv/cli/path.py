"""`tv path`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tv.cli.options import Base, Device, Dtype, Output, Tuned
from tv.cli.output import check_output, write
from tv.cli.prompt_options import prompt_sets, reads_prompts
from tv.cli.terminal import Shown, bar, interval, number, print_notes, print_table, say
from tv.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_ROUNDING = 1e-5  # nats; float32 logits resolve nothing smaller


@reads_prompts
def path(
    base: Base,
    tuned: Tuned,
    prompts: Annotated[list[Path], typer.Option(help="Prompt file: JSONL, JSON, CSV, TSV or Parquet; repeatable.")],
    second: Annotated[
        str | None, typer.Option(help="A second tuned model: measure the plane θ + αT + βT' instead of the path.")
    ] = None,
    start: Annotated[float, typer.Option("--from", help="The first α.")] = -0.5,
    stop: Annotated[float, typer.Option("--to", help="The last α.")] = 1.5,
    points: Annotated[
        int | None,
        typer.Option(help="How many α to measure; 0 and 1 are added.", show_default="21; 9 per side of a plane"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts in one forward pass.")] = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
    **reading: Any,
) -> None:
    """Measure loss and behaviour along θ + αT, from the base (α = 0) through the tuned model (α = 1), and the barrier.

    Example: tv path data/models/base data/models/medical --prompts data/prompts/medical.jsonl
    """
    import numpy as np

    import tv

    check_output(output)
    n = points if points is not None else 21 if second is None else 9
    if n < 2:
        raise InputError(f"--points {n}: a path needs at least two points")
    if not start < stop:
        raise InputError(f"--from {start:g} --to {stop:g}: --from must be smaller than --to")
    sets = prompt_sets(prompts, **reading)
    alphas = [float(alpha) for alpha in np.linspace(start, stop, n)]
    with bar("path" if second is None else "plane") as progress:
        compute = tv.Compute(device, dtype, progress=progress)
        if second is None:
            frame = tv.path(base, tuned, sets, alphas=alphas, batch_size=batch_size, compute=compute)
        else:
            frame = tv.plane(
                base,
                tuned,
                second,
                sets,
                alphas=alphas,
                betas=alphas,
                batch_size=batch_size,
                compute=compute,
            )
    show = _print_path if second is None else _print_plane
    for domain in _domains(frame):
        show("all prompts" if domain == "all" else domain, frame[frame.domain == domain])
    print_notes(frame.attrs.get("notes", ()))
    write(frame, output)


def _domains(frame: pd.DataFrame) -> list[str]:
    """The domains to print: of several, not their mixture."""
    names = list(dict.fromkeys(frame.domain))
    return names if len(names) == 1 else names[1:]


def _print_path(label: str, points: pd.DataFrame) -> None:
    loss = points[points.metric == "loss"].set_index("alpha")
    others = [name for name in ("logit_diff", "exact_match") if (points.metric == name).any()]
    means = points[points.metric.isin(others)].pivot_table(index="alpha", columns="metric", values="value")
    rows: list[list[object]] = []
    for alpha, row in loss.iterrows():
        loss_there = [float(row["value"]), interval(row["lo"], row["hi"])]
        rows.append([_alpha(alpha), *loss_there, *(float(means.loc[alpha, name]) for name in others)])
    title = _title(label, loss)
    print_table(title, ["α", "loss", "95 % interval", *(name.replace("_", " ") for name in others)], rows)
    say(f"{label}: {_barrier_in_words(points)}")


def _barrier_in_words(points: pd.DataFrame) -> str:
    from tv.stats.means import FEWEST

    barrier, rise = (points[points.metric == name].iloc[0] for name in ("barrier", "rise"))
    size = f"{number(barrier['value'])} {interval(barrier['lo'], barrier['hi']).text} nats"
    if math.isnan(barrier["lo"]):
        size = f"{number(barrier['value'])} nats above the straight line between the ends"
        return f"fewer than {FEWEST} prompts or clusters are too few to say whether there is a barrier: {size}"
    if not barrier["lo"] > _ROUNDING:
        return f"no barrier found: {size} above the straight line between the ends"
    words = f"barrier {size} above the straight line between the ends, at α = {barrier['alpha']:g}"
    if not rise["lo"] > _ROUNDING:
        return f"{words}; but no point is worse than both ends: the curve bends without a barrier between them"
    size = f"{number(rise['value'])} [{number(rise['lo'])}, {number(rise['hi'])}] nats"
    return f"{words}; {size} worse than the worse end, at α = {rise['alpha']:g}"


def _print_plane(label: str, points: pd.DataFrame) -> None:
    loss = points[points.metric == "loss"]
    grid = loss.pivot_table(index="alpha", columns="beta", values="value")
    rows: list[list[object]] = [[_alpha(alpha), *(float(value) for value in grid.loc[alpha])] for alpha in grid.index]
    title = f"{_title(label, loss)}, α down, β across"
    print_table(title, ["α \\ β", *(f"{beta:g}" for beta in grid.columns)], rows)
    best = loss.loc[loss["value"].idxmin()]
    ends = {"base": (0, 0), "first": (1, 0), "second": (0, 1), "both": (1, 1)}
    corners = ", ".join(f"{name} {number(float(grid.loc[at[0], at[1]]))}" for name, at in ends.items())
    say(f"{label}: {corners}; lowest {number(best['value'])} at α = {best['alpha']:g}, β = {best['beta']:g}")


def _title(label: str, loss: pd.DataFrame) -> str:
    n, clusters = loss.prompts.iloc[0], loss.clusters.iloc[0]
    prompts = f"{n} {'prompt' if n == 1 else 'prompts'}" + (f" in {clusters} clusters" if clusters < n else "")
    return f"{label}: {prompts}, loss in nats per token ({loss.over.iloc[0]})"


def _alpha(value: float) -> Shown:
    return Shown(value, f"{value:g}")
