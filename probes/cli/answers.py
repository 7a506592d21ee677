"""`probes link`, `diagnose`, `report` and `compare`, which read finished runs and need no model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probes.cli.options import RunPath
from tv.cli.terminal import print_table, say, wrote


def link(path: RunPath) -> None:
    """Join a run's weights, changes, ledger and effects by layer again; print the rank correlations.

    Example: probes link reports/demo
    """
    import probes

    loaded = probes.load(path)
    probes.link(loaded)
    correlations = loaded["correlations"]
    print_table("rank correlations", list(correlations.columns), correlations.to_numpy(object).tolist())


def diagnose(
    path: RunPath,
    conflicts: Annotated[bool, typer.Option(help="Compare every two tuned checkpoints again.")] = True,
) -> None:
    """Say which known failure signatures a run shows, with the numbers behind them.

    Example: probes diagnose reports/demo
    """
    import probes

    for row in probes.diagnose(probes.load(path), conflicts=conflicts).to_dict("records"):
        mark = {True: "yes", False: "no", None: "cannot tell"}[row["holds"]]
        say(f"{row['tuned']}: {row['signature']}: {mark}. {row['sentence']}")


def report(path: RunPath) -> None:
    """Write a run's report.html again.

    Example: probes report reports/demo
    """
    import probes

    wrote(probes.report(probes.load(path)), "the report")


def compare(
    paths: Annotated[list[str], typer.Argument(metavar="RUN", help="Directories of runs, or their URLs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write (.html).")],
    label: Annotated[list[str] | None, typer.Option(help="A run's label on the page, in the runs' order.")] = None,
) -> None:
    """Lay several runs side by side in one page: checkpoints of one training, domains, sizes.

    Example: probes compare reports/medical reports/math --out compared.html --label medical --label math
    """
    import probes

    wrote(probes.compare(paths, to=out, labels=label), f"{len(paths)} runs compared")
