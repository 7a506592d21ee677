"""`probes probe`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from probes.cli.options import RunPath
from probes.cli.places import Draws, Layer, Places, Site, Tuned
from tv.cli.options import Device, Dtype
from tv.cli.terminal import Stages, interval, print_table, wrote
from tv.runtime.compute import Compute


def probe(
    path: RunPath,
    label: Annotated[
        str,
        typer.Option(help="domain, correct, or FILE:COLUMN of a CSV, TSV, JSONL or Parquet file with prompt ids."),
    ] = "domain",
    of: Annotated[
        Literal["own", "base", "tuned"],
        typer.Option(help="For the label correct: whose answers count; own: those of the model that is read."),
    ] = "own",
    site: Site = "resid_post",
    positions: Places = "last",
    layer: Layer = None,
    tuned: Tuned = None,
    folds: Annotated[int, typer.Option(min=2, help="Cross-validation folds, of whole clusters of prompts.")] = 5,
    controls: Annotated[
        int, typer.Option(min=0, help="Draws of shuffled labels; with fewer than 20 no label can count as readable.")
    ] = 20,
    draws: Draws = 3,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Train linear probes: is a label readable in each layer of base and tuned, and did its direction turn?

    Example: probes probe reports/demo --label domain
    """
    import probes

    loaded = probes.load(path)
    with Stages() as stages:
        rows = probes.probe(
            loaded,
            label,
            of=of,
            site=site,
            positions=positions,
            layers=layer,
            tuned=tuned,
            folds=folds,
            controls=controls,
            draws=draws,
            compute=Compute(device, dtype, progress=stages.update),
        )
    columns = ["tuned", "layer", "base reads", "tuned reads", "change", "its 95 %", "q", "corrected cosine", "its 95 %"]
    columns += ["direction"]
    print_table(
        f"probes of {rows.label.iloc[0]}: held-out accuracy (of a number: R²), and whether the direction turned",
        columns,
        [
            [
                row.tuned,
                row.layer,
                row.accuracy_base,
                row.accuracy_tuned,
                row.change,
                interval(row.change_lo, row.change_hi),
                row.q,
                row.corrected,
                interval(row.corrected_lo, row.corrected_hi),
                row.verdict,
            ]
            for row in rows.itertuples()
        ],
    )
    wrote(
        probes.report(loaded), "the report; read probe_accuracy, probe_directions and probe_weights with `probes query`"
    )
