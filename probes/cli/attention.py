"""`probes attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from probes.cli.options import RunPath
from probes.cli.places import Tuned
from tv.cli.options import Device, Dtype, Offload
from tv.cli.terminal import Shown, Stages, print_table, wrote
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    import pandas as pd

#: Heads that are printed of each tuned model.
SHOWN = 8


def attention(
    path: RunPath,
    tuned: Tuned = None,
    prompts: Annotated[int, typer.Option(help="How many prompts to read, drawn from all domains in turn.")] = 96,
    draws: Annotated[int, typer.Option(help="Draws of base + random T, the null; at least 2.")] = 4,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
) -> None:
    """Measure how each head's attention pattern changed, and whether its own weights or its input changed it.

    Example: probes attention reports/demo --tuned medical --draws 4
    """
    import probes

    run = probes.load(path)
    with Stages() as stages:
        heads = probes.attention(
            run,
            tuned=tuned,
            prompts=prompts,
            draws=draws,
            compute=Compute(device, dtype, offload, progress=stages.update),
        )
        page = probes.report(run)
    print_heads(heads)
    wrote(page, "the report")


def print_heads(heads: pd.DataFrame) -> None:
    """The heads whose patterns changed most, over all prompts, beside both nulls."""
    cells: list[list[object]] = []
    for _, rows in heads[heads.domain == "all"].groupby("tuned", sort=False):
        for row in rows.nlargest(SHOWN, "js").to_dict("records"):
            told = "–" if row["own_share"] != row["own_share"] else f"{row['own_share']:.0%}"
            share = Shown(row["own_share"], told)
            name = f"layer {row['layer']} head {row['head']}"
            measures = [row["js"], row["js_random"], row["js_floor"], row["q"]]
            cells.append([row["tuned"], name, *measures, share, "yes" if row["stands_out"] else "no"])
    headings = ["tuned", "head", "JS, nats", "random T", "rounding", "q", "own weights", "stands out"]
    print_table("heads whose patterns changed most", headings, cells)
