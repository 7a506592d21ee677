"""Options of commands that read states of a run: where, of which models, and beside how many nulls."""

from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from tv.cli.options import among


def _metrics() -> Iterable[str]:
    from probes.suite import metric_names

    return metric_names()


SiteName = Literal["resid_post", "resid_pre", "resid_mid", "attn_out", "mlp_out"]
Site = Annotated[SiteName, typer.Option(help="Where states are read.")]
Places = Annotated[
    Literal["last", "all", "target", "generated", "from answer", "from user", "after template"],
    typer.Option(help="Which positions of a prompt to read; several are averaged. last is the last token of the text."),
]
Layer = Annotated[
    list[int] | None, typer.Option(help="Only this layer, counted from 0; repeatable.", show_default="all")
]
Tuned = Annotated[
    list[str] | None,
    typer.Option("--tuned", help="Only this tuned model of the run; repeatable.", show_default="all"),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="The behaviour metric of the effects: logit_diff, target_nll, ….",
        show_default="the run's",
        autocompletion=among(_metrics),
    ),
]
Draws = Annotated[int, typer.Option(min=0, help="Draws of base + random T, the null of every difference.")]
