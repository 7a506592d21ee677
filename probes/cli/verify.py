"""`probes verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.options import RunPath
from tv.cli.commands import CANNOT_TELL, DONE, FAILED
from tv.cli.terminal import Stages, print_table, say

_WORDS = {True: "yes", False: "NO", None: "cannot tell"}


def verify(
    path: RunPath,
    models: Annotated[bool, typer.Option("--models", help="Also hash the weights of the models.")] = False,
    digest: Annotated[
        str | None, typer.Option("--digest", help="The SHA-256 of the run that its author published.")
    ] = None,
) -> int:
    """Check that a run is intact: digests, tables, prompts, and that the report shows the numbers of the tables.

    Exit status: 0 if all checks pass, 3 if one fails, 4 if one cannot be made.

    Example: probes verify reports/demo
    """
    import probes

    with Stages(transient=True) as stages:
        found = probes.verify(path, models=models, digest=digest, progress=stages.update)
    rows: list[list[object]] = [[check.name, _WORDS[check.passes], check.said] for check in found.checks]
    print_table(f"{path}", ["check", "passes", "found"], rows)
    failed = sum(check.passes is False for check in found.checks)
    verdict = {
        True: "all checks pass",
        False: f"{failed} {'check fails' if failed == 1 else 'checks fail'}",
        None: "no check fails, but not all could be made",
    }
    say(f"{path}: {verdict[found.passes]}; the run's SHA-256 is {found.digest}")
    return DONE if found.passes else CANNOT_TELL if found.passes is None else FAILED
