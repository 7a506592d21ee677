"""`probes logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.options import RunPath
from tv.cli.options import named
from tv.cli.terminal import print_table, wrote


def logs(
    path: RunPath,
    log: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=LOG",
            help="The log of a model (base, or the name of a tuned one): samples of lm-eval or a log of Inspect.",
        ),
    ],
) -> None:
    """Add the logs of other evaluations to the behaviour of a run, for the prompts that came from these logs.

    Example: probes logs reports/items base=data/logs/lm-eval/base medical=data/logs/lm-eval/medical
    """
    import probes

    sources = named(log)
    run = probes.load(path)
    rows = probes.logs(run, sources)
    page = probes.report(run)
    cells: list[list[object]] = [
        [metric, model, len(of), float(of.value.mean())]
        for (metric, model), of in rows.groupby(["metric", "model"], sort=False)
    ]
    print_table("added to behaviour", ["metric", "model", "prompts", "mean"], cells)
    wrote(page, "the report")
