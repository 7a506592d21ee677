"""`probes steer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from probes.cli.options import RunPath
from probes.cli.places import Metric, SiteName, Tuned
from tv.cli.options import Device, Dtype
from tv.cli.terminal import Shown, Stages, print_table, wrote
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    import pandas as pd

_Positions = Literal["target", "last", "all", "from answer", "from user", "after template"]


def steer(
    path: RunPath,
    direction: Annotated[
        str,
        typer.Option(
            help="The vector: mean, mean:DOMAIN, mean:RUN, singular:MODULE, ledger:MODULE, probe:LABEL, or a file "
            "(.npy, .safetensors)."
        ),
    ] = "mean",
    op: Annotated[
        Literal["add", "ablate", "clamp"],
        typer.Option(help="add it, ablate it (project it out), or clamp its coordinate to the other model's mean."),
    ] = "add",
    site: Annotated[SiteName, typer.Option(help="The site to change.")] = "resid_post",
    layer: Annotated[
        list[int] | None,
        typer.Option(help="A layer to try, counted from 0; repeatable. The best is chosen.", show_default="all"),
    ] = None,
    positions: Annotated[_Positions, typer.Option(help="The positions where the vector is made and added.")] = "target",
    dose: Annotated[
        list[float] | None,
        typer.Option(help="A multiple of the vector to try besides 1; repeatable.", show_default="0.25, 0.5, 2 and 4"),
    ] = None,
    placebos: Annotated[
        int, typer.Option(min=1, help="Random vectors, and as many shuffled ones; fewer than 20 cannot tell.")
    ] = 20,
    samples: Annotated[int, typer.Option(min=0, help="Prompts that both models continue, steered and unsteered.")] = 3,
    metric: Metric = None,
    tuned: Tuned = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Test whether one vector carries the behaviour: steer both models of a run with it, next to placebos.

    One half of the prompts chooses the vector, its layer and its dose; the effect is measured on the other half.

    Example: probes steer reports/demo --tuned medical
    """
    import probes

    loaded = probes.load(path)
    with Stages() as stages:
        found = probes.steer(
            loaded,
            direction=direction,
            op=op,
            site=site,
            layers=layer,
            positions=positions,
            doses=(0.25, 0.5, 2.0, 4.0) if dose is None else dose,
            placebos=placebos,
            samples=samples,
            metric=metric,
            tuned=tuned,
            compute=Compute(device, dtype, progress=stages.update),
        )
    print_answers(found)
    wrote(probes.report(loaded), "the report, with doses, placebos and samples")


def print_answers(found: pd.DataFrame) -> None:
    """A line a model, direction and domain."""
    from probes.reporting.words import chosen_by_halves, effect_metric_name, number

    cells: list[list[object]] = []
    for row in found.to_dict("records"):
        share = [row[name] for name in ("share", "share_lo", "share_hi")]
        told = "–" if row["share"] != row["share"] else f"{number(share[0])} ({number(share[1])} … {number(share[2])})"
        cells.append(
            [
                row["tuned"],
                row["direction"],
                row["domain"],
                chosen_by_halves(row),
                row["effect"],
                Shown(share, told),
                row["random_p"],
                row["shuffled_p"],
                row["kl"],
                row["answer"],
            ]
        )
    columns = ["tuned", "steered", "domain", "layer × dose", "effect", "share of the change", "p, random"]
    columns += ["p, shuffled", "KL, nats", "one vector"]
    metric = effect_metric_name(str(found.metric.iloc[0]))
    title = f"the {metric} that one vector carries, held out; layer × dose: the choice of each half of the prompts"
    print_table(title, columns, cells, digits=3)
