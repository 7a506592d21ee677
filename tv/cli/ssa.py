"""`tv ssa`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tv.cli.options import Align, Base, Cache, Device, Dtype, Engine, Heads, Output, Tuned, Workers
from tv.cli.output import check_output, write
from tv.cli.terminal import bar, number, print_notes, print_table, say

if TYPE_CHECKING:
    import pandas as pd


def ssa(
    base: Base,
    tuned: Tuned,
    epsilon: Annotated[
        list[float] | None,
        typer.Option(help="Relative error of the kept subspace; repeatable.", show_default="0.01, 0.05, 0.1"),
    ] = None,
    k_rule: Annotated[
        str, typer.Option(help="How k is chosen: tail (by ε), energy (share of Σσ²) or fixed (share of the dimension).")
    ] = "tail",
    level: Annotated[
        list[float] | None,
        typer.Option(
            help="The level of --k-rule: ε, share of energy or share of the dimension; required with energy and "
            "fixed; repeatable.",
            show_default="--epsilon",
        ),
    ] = None,
    null: Annotated[
        str,
        typer.Option(help="What SSA is compared with: rotation, gaussian, row_scale, shuffle …"),
    ] = "rotation",
    draws: Annotated[int, typer.Option(help="Draws of the shuffle null.")] = 20,
    swap: Annotated[bool, typer.Option(help="Add a control: T against the basis of another layer.")] = False,
    curve: Annotated[
        Path | None, typer.Option(help="Also write SSA(k) for every k, and its area above the null, to this file.")
    ] = None,
    heads: Heads = True,
    align: Align = False,
    seed: Annotated[int, typer.Option(help="Seed of all random draws.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    workers: Workers = 1,
    engine: Engine = "local",
    cache: Cache = None,
    output: Output = None,
) -> None:
    """Measure the subspace alignment (SSA) of every matrix, next to its null.

    Example: tv ssa data/models/base data/models/medical -o ssa.parquet
    """
    import tv
    from tv.cli.align import aligned

    for path in (output, curve):
        check_output(path)
    side = aligned(base, tuned) if align else tuned
    with bar("alignment") as progress:
        frame = tv.ssa(
            base,
            side,
            **({"epsilons": tuple(epsilon)} if epsilon else {}),
            k_rule=k_rule,  # type: ignore[arg-type]
            levels=level,
            null=null,
            draws=draws,
            swap=swap,
            heads=heads,
            seed=seed,
            compute=tv.Compute(device, dtype, False, workers, engine, cache, progress),
        )
    _print_alignment(frame)
    print_notes(frame.attrs.get("notes", ()))
    write(frame, output)
    if curve is not None:
        with bar("curve") as progress:
            points = tv.curve(
                base,
                side,
                heads=heads,
                compute=tv.Compute(device, dtype, False, workers, engine, cache, progress),
            )
        write(points, curve)


def _print_alignment(frame: pd.DataFrame) -> None:
    """Print what is beyond the null first: the fixed fraction, then one level of the rule beside its null."""
    from tv.measures.forms import form_of
    from tv.stats.pooling import normal_scores, pooled

    form = form_of("alignment")
    whole = frame[frame["head"] == -1]
    is_fixed = (whole.k_rule == "fixed") & (whole.level.sub(0.1).abs() < 1e-9)
    fixed, ruled = whole[is_fixed].assign(lift=lambda f: f.ssa**2 / f.ssa_null**2), whole[~is_fixed]
    fixed = fixed.assign(score=normal_scores(fixed.ssa**2, fixed.ssa_null**2, fixed.ssa_z))
    sided = fixed.groupby(["module", "side"], sort=False)
    lift, z = sided.lift.mean(), sided.score.agg(pooled)
    headings = ["module", *(heading for side in ("left", "right") for heading in (f"lift {side}", form["ssa_z"].title))]
    rows = [
        [name, *(table[name, side] for side in ("left", "right") for table in (lift, z))]
        for name in dict.fromkeys(fixed.module)
    ]
    title = "mean over layers that moved: energy over its null at 10 % of the dimension (z pooled)"
    if len(ruled):
        shown = min(ruled.level.unique(), key=lambda level: abs(level - 0.05))
        at = ruled[(ruled.level == shown) & ruled.ssa.notna()]
        at = at.groupby(["module", "side"])[["ssa", "ssa_null", "kappa"]].mean()
        wanted = [("ssa", "left"), ("ssa_null", "left"), ("kappa", "left"), ("kappa", "right")]
        headings += [form[name].title if name == "ssa_null" else f"{form[name].title} {side}" for name, side in wanted]
        rows = [[*row, *(float(at[name].get((row[0], side), math.nan)) for name, side in wanted)] for row in rows]
        rule = {"tail": "ε =", "energy": "energy share", "fixed": "dimension share"}[ruled.k_rule.iloc[0]]
        title += f", then SSA at {rule} {shown:g}"
    print_table(title, headings, rows)
    if len(fixed) and fixed.ssa.isna().all():
        say("no matrix of a block changed; `tv geometry` shows embeddings, norms and parts outside the language model")
    if "ssa_swap" in whole:
        sided = fixed[fixed.side != "two_sided"]
        mean_lift, swapped_lift = (float((sided[name] ** 2 / sided.ssa_null**2).mean()) for name in ("ssa", "ssa_swap"))
        told = f"{number(mean_lift)} on a module's own basis, {number(swapped_lift)} on another layer's"
        say(f"control: mean lift {told}")
