"""`probes neurons`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from probes.cli.options import RunPath
from probes.cli.places import Tuned
from tv.cli.options import Device, Dtype, Offload
from tv.cli.terminal import Stages, print_table, wrote
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    import pandas as pd

#: Neurons that are printed of each tuned model.
SHOWN = 5


def neurons(
    path: RunPath,
    tuned: Tuned = None,
    prompts: Annotated[int, typer.Option(help="How many prompts are read, drawn in turn from every domain.")] = 96,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
) -> None:
    """The tokens at which the neurons that flip most are most open, in the base and in the tuned model.

    Example: probes neurons reports/demo --tuned medical
    """
    import probes

    run = probes.load(path)
    with Stages() as stages:
        compute = Compute(device, dtype, offload, progress=stages.update)
        tokens = probes.neurons(run, tuned=tuned, prompts=prompts, compute=compute)
        page = probes.report(run)
    print_tokens(tokens)
    wrote(page, "the report")


def print_tokens(tokens: pd.DataFrame) -> None:
    """The largest token of the first neurons of each tuned model, in either model."""
    cells: list[list[object]] = []
    for name, rows in tokens[tokens["rank"] == 1].groupby("tuned", sort=False):
        for (layer, neuron), own in list(rows.groupby(["layer", "neuron"], sort=False))[:SHOWN]:
            by_model = {str(row["model"]): row for row in own.to_dict("records")}
            largest = [by_model[model] for model in ("base", str(name))]
            cells.append(
                [
                    str(name),
                    f"layer {layer} neuron {neuron}",
                    *(
                        f"{row['token']!r} {row[f'value_{side}']:.3g}"
                        for row, side in zip(largest, ("base", "tuned"), strict=True)
                    ),
                ]
            )
    print_table(
        "where neurons that flip are most open", ["tuned", "neuron", "in the base", "in the tuned model"], cells
    )
