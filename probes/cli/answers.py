"""`probes link`, `diagnose`, `report` and `compare`, which read finished runs and need no model."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from probes.cli.effects import tell_next
from probes.cli.options import RunPath
from tv.cli.terminal import print_table, remark, say, wrote
from tv.errors import InputError


def link(path: RunPath) -> None:
    """Join the weights, changes, ledger and effects of a run by layer again, and print their rank correlations.

    Example: probes link reports/demo
    """
    import probes

    loaded = probes.load(path)
    probes.link(loaded)
    correlations = loaded["correlations"]
    print_table("rank correlations", list(correlations.columns), correlations.to_numpy(object).tolist())
    tell_next(path)


def diagnose(
    path: RunPath,
    conflicts: Annotated[bool, typer.Option(help="Also compare every two tuned checkpoints.")] = True,
) -> None:
    """List the known signs of failed tuning that a run shows, with the numbers behind them.

    Example: probes diagnose reports/demo
    """
    import probes

    for row in probes.diagnose(probes.load(path), conflicts=conflicts).to_dict("records"):
        mark = {True: "yes", False: "no", None: "cannot tell"}[row["holds"]]
        say(f"{row['tuned']}: {row['signature']}: {mark}. {row['sentence']}")


def report(path: RunPath) -> None:
    """Write the report.html of a run again.

    Example: probes report reports/demo
    """
    import probes

    wrote(probes.report(probes.load(path)), "the report")


def compare(
    paths: Annotated[list[str], typer.Argument(metavar="RUN", help="Directories or URLs of runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page to write (.html); optional for a watched training run.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="The label of a run on the page, in the order of the runs; repeatable.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="For a watched training run: update the page until training ends.")
    ] = False,
    every: Annotated[float, typer.Option(help="With --watch: seconds between two updates.")] = 5.0,
) -> None:
    """Compare several runs in one page: checkpoints of one training run, domains or sizes; or watch a training run.

    Example: probes compare reports/medical reports/math --out compared.html --label medical --label math
    """
    from probes.watch.store import is_watched

    if watch or (len(paths) == 1 and is_watched(paths[0])):
        if len(paths) > 1 or label:
            raise InputError("--watch takes one directory, the `out` of a probes.TrainingProbe, and no label")
        if not every > 0:
            raise InputError(f"--every {every:g}: must be more than 0 seconds")
        _watch(paths[0], out, every, watch)
        return
    if out is None:
        raise InputError("no page to write; name one with --out PAGE.html")
    import probes

    wrote(probes.compare(paths, to=out, labels=label), f"{len(paths)} runs compared")


def _watch(path: str, out: Path | None, every: float, live: bool) -> None:
    """Write the page of a watched training, until it ends or someone presses Ctrl-C."""
    from probes.watch.page import watch

    page = None
    with suppress(KeyboardInterrupt):
        for page in watch(path, to=out, every=every, live=live):
            remark(f"{page}: written; the browser reloads it by itself" if live else f"{page}: written")
    if page is not None:
        wrote(page, "the watched training run")
