"""`probes representations`."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.options import RunPath
from probes.cli.places import Draws, Layer, Metric, Places, Site, Tuned
from tv.cli.options import Device, Dtype
from tv.cli.terminal import Stages, interval, print_table, wrote
from tv.runtime.compute import Compute


def representations(
    path: RunPath,
    site: Site = "resid_post",
    positions: Places = "last",
    layer: Layer = None,
    tuned: Tuned = None,
    metric: Metric = None,
    neighbours: Annotated[int, typer.Option(min=1, help="How many nearest prompts of each prompt to compare.")] = 10,
    draws: Draws = 3,
    curves: Annotated[
        bool, typer.Option(help="Also patch growing projections of Δh into the base and measure the metric.")
    ] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Measure how far apart the states of both models are, along which directions, and what these directions do.

    Example: probes representations reports/demo
    """
    import probes

    loaded = probes.load(path)
    with Stages() as stages:
        rows = probes.representations(
            loaded,
            site=site,
            positions=positions,
            layers=layer,
            tuned=tuned,
            metric=metric,
            neighbours=neighbours,
            draws=draws,
            curves=curves,
            compute=Compute(device, dtype, progress=stages.update),
        )
    columns = ["tuned", "layer", "measure", "value", "95 %", "unrelated", "rounded", "random T", "beyond both"]
    print_table(
        "distances",
        columns,
        [
            [
                row.tuned,
                row.layer,
                row.measure,
                row.value,
                interval(row.lo, row.hi),
                row.shuffled,
                row.rounded,
                row.random,
                "yes" if row.beyond else "no",
            ]
            for row in rows.itertuples()
        ],
    )
    wrote(probes.report(loaded), "the report; the tables are distances, delta_spectrum, delta_angles and delta_curve")
