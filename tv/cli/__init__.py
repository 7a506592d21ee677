"""The `tv` command."""

from __future__ import annotations

import typer

from tv.cli.align import align
from tv.cli.apply import apply
from tv.cli.command import command, entry
from tv.cli.cosine import cosine
from tv.cli.evaluate import evaluate
from tv.cli.experiment import app as experiment
from tv.cli.extract import extract
from tv.cli.geometry import geometry
from tv.cli.info import info
from tv.cli.lora import lora_export, lora_init
from tv.cli.path import path
from tv.cli.quality import quality
from tv.cli.ssa import ssa

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Where fine-tuning moved the weights, and what of it is more than matrix shape.",
)
for work in (info, extract, ssa, geometry, cosine, path, align, apply, lora_export, lora_init, evaluate, quality):
    app.command()(command(work))
app.add_typer(experiment, name="experiment")


def main() -> None:
    """Run the `tv` command."""
    entry(app, "tv", resumes="experiment")
