"""`probes edges`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from probes.cli.options import RunPath
from probes.cli.places import Metric, Tuned
from tv.cli.options import Device
from tv.cli.terminal import Shown, Stages, print_table, wrote
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    import pandas as pd

#: Edges that are printed of each tuned model.
SHOWN = 10


def edges(
    path: RunPath,
    tuned: Tuned = None,
    metric: Metric = None,
    prompts: Annotated[int, typer.Option(help="How many prompts to read, drawn from all domains in turn.")] = 96,
    draws: Annotated[int, typer.Option(help="Draws of base + random T, the null; at least 2.")] = 4,
    steps: Annotated[
        int,
        typer.Option(help="Initial steps of the integral, an even number; more are taken until it settles."),
    ] = 8,
    orders: Annotated[
        int, typer.Option(help="Random orders of edges, for comparison with the curve of the largest first.")
    ] = 8,
    device: Device = "cpu",
) -> None:
    """Measure how the change of each component acts on a metric through each component that reads it.

    The metric must have a gradient, as logit_diff and target_nll do.

    Example: probes edges reports/demo --tuned medical --metric logit_diff
    """
    import probes

    run = probes.load(path)
    with Stages() as stages:
        found = probes.edges(
            run,
            tuned=tuned,
            metric=metric,
            prompts=prompts,
            draws=draws,
            steps=steps,
            orders=orders,
            compute=Compute(device, progress=stages.update),
        )
        page = probes.report(run)
    print_edges(found)
    wrote(page, "the report")


def print_edges(edges: pd.DataFrame) -> None:
    """The largest edges between components, where they are largest; those to the logits are left to the report."""
    between = edges[edges.receiver != "logits"]
    cells: list[list[object]] = []
    for _, of_tuned in between.groupby("tuned", sort=False):
        of_one = of_tuned[of_tuned.domain == of_tuned.domain.loc[of_tuned.effect.abs().idxmax()]]
        for row in of_one.loc[of_one.effect.abs().nlargest(SHOWN).index].to_dict("records"):
            head = f" head {row['head']}" if row["head"] >= 0 else ""
            sender = "embed" if row["sender"] == "embed" else f"layer {row['sender_layer']} {row['sender']}{head}"
            receiver = f"layer {row['receiver_layer']} {row['receiver']}"
            effect = Shown(row["effect"], f"{row['effect']:+.3f}")
            out = "yes" if row["stands_out"] else "no"
            cells.append(
                [row["tuned"], row["domain"], sender, receiver, effect, row["share"], row["random_most"], row["q"], out]
            )
    headings = ["tuned", "domain", "sender", "receiver", "effect", "share", "random T", "q", "stands out"]
    print_table("largest edges between components", headings, cells)
