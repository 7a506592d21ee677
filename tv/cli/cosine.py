"""`tv cosine`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tv.cli.options import Base, Device, Dtype, Output, named
from tv.cli.output import check_output, write
from tv.cli.terminal import Shown, bar, number, print_notes, print_table, say

if TYPE_CHECKING:
    import pandas as pd


def cosine(
    base: Base,
    tuned: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]TUNED", help="Two or more tuned models; the default name is the last part of the path."
        ),
    ],
    fraction: Annotated[float, typer.Option(help="The share of leading directions to compare.")] = 0.10,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
) -> None:
    """Compare tuning vectors of one base: cosine, sign conflicts and shared directions, next to their nulls.

    Example: tv cosine data/models/base data/models/medical data/models/math
    """
    import tv

    check_output(output)
    sources = named(tuned)
    with bar("cosine") as progress:
        frame = tv.cosine(base, sources, fraction=fraction, compute=tv.Compute(device, dtype, progress=progress))
    whole = frame[frame.scope == "whole"]
    print_notes(frame.attrs.get("notes", ()))
    _print_matrix(list(sources), whole)
    for row in whole.to_dict("records"):
        _print_modules(frame[(frame.a == row["a"]) & (frame.b == row["b"])], f"{row['a']} and {row['b']}")
        say(_in_words(row))
    write(frame, output)


def _print_matrix(names: list[str], whole: pd.DataFrame) -> None:
    cosines = {(row.a, row.b): row.cosine for row in whole.itertuples()}
    cosines |= {(b, a): value for (a, b), value in cosines.items()}
    rows: list[list[object]] = [[a, *(cosines.get((a, b), 1.0) for b in names)] for a in names]
    print_table("cosine of the whole tuning vectors", ["", *names], rows)


def _print_modules(frame: pd.DataFrame, pair: str) -> None:
    """Means over layers of the modules that both moved, those with the most shared directions first."""
    from tv.measures.cosine import COSINES

    modules = frame[(frame.scope == "module") & (frame.norm_a > 0) & (frame.norm_b > 0)]
    modules = modules.assign(beyond=modules.cosine_shared_z.abs() > 3, rows=1)
    shared = ["overlap_left_kappa", "overlap_right_kappa"]
    by_name = modules.groupby("module", sort=False)
    means = by_name[[*shared, "cosine", "sign_conflict", "sign_conflict_null"]].mean()
    means = means.loc[means[shared].max(axis=1).sort_values(ascending=False, kind="stable").index]
    counts = by_name[["beyond", "rows"]].sum()
    rows: list[list[object]] = []
    for name, mean in means.iterrows():
        beyond = Shown([counts.beyond[name], counts.rows[name]], f"{counts.beyond[name]} of {counts.rows[name]}")
        rows.append([name, *mean[[*shared, "cosine"]], beyond, mean.sign_conflict, mean.sign_conflict_null])
    cosine, z, *signs = (COSINES[name].title for name in ("cosine", "cosine_z", "sign_conflict", "sign_conflict_null"))
    headings = ["module", "κ left", "κ right", cosine, f"|{z}| > 3", *signs]
    print_table(f"{pair}, mean over layers: κ, shared directions beyond their null", headings, rows)


def _in_words(row: Mapping[str, Any]) -> str:
    """One line on the whole of two vectors."""
    pair = f"{row['a']} and {row['b']}"
    if not row["sign_entries"]:
        return f"{pair}: no parameter is changed by both"
    z = row["cosine_shared_z"]
    side = "above" if z > 0 else "below"
    beyond = f"{number(abs(z))} standard deviations {side} what unrelated coefficients in the same directions give"
    null = "" if math.isnan(z) else f", {beyond if abs(z) > 2 else 'no more than these directions give by chance'}"
    cosine = f"cosine {number(row['cosine'])}{null}"
    conflict = f"{row['sign_conflict']:.1%} of the entries that both change (by chance {row['sign_conflict_null']:.1%})"
    return f"{pair}: {cosine}; signs differ on {conflict}, by size {row['conflict_energy']:.1%}"
