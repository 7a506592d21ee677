"""`tv ssa`."""

from typing import Annotated

import pandas as pd
import typer

from tv.cli.options import Base, Heads, Output, Tuned
from tv.cli.output import check_output, write
from tv.cli.terminal import Bar, print_table


def ssa(
    base: Base,
    tuned: Tuned,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Relative error of the kept subspace; repeatable.")
    ] = None,
    heads: Heads = True,
    output: Output = None,
) -> None:
    """Subspace alignment of every matrix beside its null.

    Example: tv ssa data/models/base data/models/medical -o ssa.parquet
    """
    import tv
    from tv.measure import EPSILONS

    check_output(output)
    with Bar("alignment") as progress:
        frame = tv.ssa(base, tuned, tuple(epsilon or EPSILONS), heads=heads, progress=progress)
    _print_alignment(frame)
    write(frame, output)


def _print_alignment(frame: pd.DataFrame) -> None:
    """Leads with what is beyond the null: the fixed fraction, then ε = 0.05 with its null beside."""
    whole = frame[frame["head"] == -1]
    fixed = whole[whole.epsilon.isna()].assign(lift=lambda f: f.ssa**2 / f.ssa_null**2)
    lift = fixed.pivot_table(index="module", columns="side", values="lift", sort=False)
    at = whole[whole.epsilon.sub(0.05).abs() < 1e-9].pivot_table(
        index="module", columns="side", values=["ssa", "ssa_null", "kappa"], sort=False
    )
    headings = ["module", "lift left", "lift right"] + ["SSA left", "null", "κ left", "κ right"] * (len(at) > 0)
    rows: list[list[object]] = []
    for name in lift.index:
        cells = [name, lift.loc[name, "left"], lift.loc[name, "right"]]
        if len(at):
            wanted = [("ssa", "left"), ("ssa_null", "left"), ("kappa", "left"), ("kappa", "right")]
            cells += [at.loc[name, key] for key in wanted]
        rows.append(cells)
    print_table("mean over layers: energy over its null at 10 % of the dimension, then SSA at ε = 0.05", headings, rows)
