"""The `tv` command."""

from __future__ import annotations

import sys

import typer

from tv.cli import (
    align,
    apply,
    cosine,
    diff,
    evaluate,
    experiment,
    extract,
    geometry,
    info,
    logs,
    lora,
    path,
    quality,
    repair,
    ssa,
    trajectory,
    verify,
)
from tv.cli.commands import entry
from tv.cli.help_texts import Group
from tv.cli.registered import Program, program

_WORKS = (
    info.info,
    extract.extract,
    ssa.ssa,
    geometry.geometry,
    cosine.cosine,
    path.path,
    trajectory.trajectory,
    align.align,
    apply.apply,
    repair.repair,
    lora.lora_export,
    lora.lora_init,
    evaluate.evaluate,
    quality.quality,
    verify.verify,
    diff.diff,
    logs.logs,
)
app = program(
    "Measure how fine-tuning changed the weights of a model, next to what matrix shape alone would give.", _WORKS
)
app.add_typer(experiment.app, name="experiment", cls=Group)


def main() -> None:
    """Run the `tv` command."""
    resumes = {"experiment": ("",), "repair": ("",), "apply": ("--search",), "trajectory": ("-o", "--output")}
    entry(_alone(sys.argv[1:2]), "tv", resumes)


def _alone(asked: list[str]) -> typer.Typer:
    """The app with the command that is asked for alone: typer builds them all, which takes a small one a fifth."""
    named = [one for one in app.registered_commands if one.callback and [one.callback.__name__] == asked]
    if not named:
        return app
    alone = typer.Typer(cls=Program, pretty_exceptions_enable=False)
    alone.callback()(lambda: None)  # else typer takes the command for the whole program
    alone.registered_commands = named
    return alone
