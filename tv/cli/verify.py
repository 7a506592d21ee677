"""`tv verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from tv.cli.commands import CANNOT_TELL, DONE, FAILED
from tv.cli.options import Base, Output
from tv.cli.output import check_output, write
from tv.cli.terminal import Shown, bar, number, print_notes, print_table, say
from tv.errors import InputError

_HEADINGS = ("parameter", "verdict", "scale", "detectable", "off", "ulps", "what it is")


def verify(
    base: Base,
    change: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="What was merged: an adapter, a tuning vector or a tuned model. With --vector, the file to check.",
        ),
    ],
    merged: Annotated[str | None, typer.Argument(metavar="[MERGED]", help="The merged file to check.")] = None,
    vector: Annotated[
        str | None, typer.Option("--vector", help="The tuning vector that was added: a file that tv extract wrote.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many parameters to show, worst first.")] = 12,
    output: Output = None,
) -> int:
    """Check that a merged file is its base + ΔW, parameter by parameter.

    Exit status: 0 if it is, 3 if it is not, 4 if its dtype is too coarse to tell.

    Example: tv verify data/models/base data/models/medical data/models/medical
    """
    import tv

    if (merged is None) == (vector is None):
        raise InputError("use either tv verify BASE ADAPTER MERGED or tv verify BASE TUNED --vector T")
    check_output(output)
    if vector is not None:
        change, merged = vector, change
    assert merged is not None
    with bar("verify") as progress:
        found = tv.verify(base, change, merged, progress=progress)
    print_notes(found.notes)
    cells: list[list[object]] = []
    for row in found.table.head(rows).to_dict("records"):
        name = row["parameter"] + (f", expert {row['expert']}" if row["expert"] >= 0 else "")
        off = Shown(row["off"], _percent(row["off"]))
        seen = Shown(
            row["detectable"], "none" if row["detectable"] == float("inf") else "±" + number(row["detectable"])
        )
        seen = Shown(None, "–") if row["detectable"] != row["detectable"] else seen
        scale = Shown(row["scale"], "–" if row["scale"] != row["scale"] else f"{row['scale']:.4g}")
        cells.append([name, row["verdict"], scale, seen, off, row["ulps"], row["said"]])
    if cells:
        rest = len(found.table) - len(cells)
        print_table(f"worst first{f'; {rest} more parameters' if rest else ''}", list(_HEADINGS), cells)
    for line in found.said:
        say(line)
    write(found.table, output)
    return DONE if found.passes else CANNOT_TELL if found.passes is None else FAILED


def _percent(share: float) -> str:
    return "–" if share != share else "0" if not share else f"{100 * share:.{3 if share > 0.995 else 2}g} %"
