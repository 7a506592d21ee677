"""`probes link`, `diagnose`, `report` and `compare`, which read finished runs and need no model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from probes.cli.options import RunPath
from tv.cli.terminal import print_table, remark, say, wrote
from tv.errors import InputError


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
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write (.html); a watched training has its own.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(help="A run's label on the page, in the runs' order.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Of a watched training: write the page again until training ends.")
    ] = False,
    every: Annotated[float, typer.Option(help="With --watch: seconds between two looks.")] = 5.0,
) -> None:
    """Lay several runs side by side in one page: checkpoints of one training, domains, sizes; or watch a training.

    Example: probes compare reports/medical reports/math --out compared.html --label medical --label math
    """
    from probes.watch.store import is_watched

    if watch or (len(paths) == 1 and is_watched(paths[0])):
        if len(paths) > 1 or label:
            raise InputError("--watch: takes one directory, the `out` of a probes.TrainingProbe, and no label")
        if not every > 0:
            raise InputError(f"--every {every:g}: seconds between two looks are more than 0")
        _watch(paths[0], out, every, watch)
        return
    if out is None:
        raise InputError("runs are compared in a page: name it with --out PAGE.html")
    import probes

    wrote(probes.compare(paths, to=out, labels=label), f"{len(paths)} runs compared")


def _watch(path: str, out: Path | None, every: float, live: bool) -> None:
    """Write the page of a watched training, until it ends or someone presses Ctrl-C."""
    from probes.watch.page import watch

    page = None
    with suppress(KeyboardInterrupt):
        for page in watch(path, to=out, every=every, live=live):
            remark(f"{page}: written; the browser loads it again by itself" if live else f"{page}: written")
    if page is not None:
        wrote(page, "the watched training")
