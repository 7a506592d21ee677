"""The `tv` command."""

from __future__ import annotations

import typer

from tv.cli import (
    align,
    apply,
    cosine,
    evaluate,
    experiment,
    extract,
    geometry,
    info,
    lora,
    path,
    quality,
    ssa,
    trajectory,
)
from tv.cli.commands import command, entry
from tv.cli.registered import Group

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Where fine-tuning moved the weights, and what of it is more than matrix shape.",
)
for work in (
    info.info,
    extract.extract,
    ssa.ssa,
    geometry.geometry,
    cosine.cosine,
    path.path,
    trajectory.trajectory,
    align.align,
    apply.apply,
    lora.lora_export,
    lora.lora_init,
    evaluate.evaluate,
    quality.quality,
):
    app.command()(command(work))
app.add_typer(experiment.app, name="experiment")


def main() -> None:
    """Run the `tv` command."""
    entry(app, "tv", resumes="experiment")
