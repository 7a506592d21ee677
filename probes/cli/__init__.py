"""The `probes` command."""

from __future__ import annotations

import typer

from probes.cli.answers import compare, diagnose, link, report
from probes.cli.attribute import attribute
from probes.cli.query import query
from probes.cli.run import run
from tv.cli.command import command, entry

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What fine-tuning changed inside a model, and which of the changes cause its behaviour.",
)
for work in (run, attribute, link, diagnose, query, report, compare):
    app.command()(command(work))


def main() -> None:
    """Run the command; bad input is one line on stderr and exit status 2."""
    entry(app, "probes", resumes="run")
