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
    models: Annotated[bool, typer.Option("--models", help="Hash the models' weights too.")] = False,
    digest: Annotated[str | None, typer.Option("--digest", help="The SHA-256 of the run as its maker told it.")] = None,
) -> int:
    """Check a run as one who trusts nobody: digests, tables, prompts, and that the report's numbers are the tables'.

    Exit status 0 where all is right, 3 where something is not, 4 where something cannot be told.

    Example: probes verify reports/demo
    """
    import probes

    with Stages(transient=True) as stages:
        found = probes.verify(path, models=models, digest=digest, progress=stages.update)
    rows: list[list[object]] = [[check.name, _WORDS[check.passes], check.said] for check in found.checks]
    print_table(f"{path}", ["what", "right", "found"], rows)
    failed = sum(check.passes is False for check in found.checks)
    verdict = {
        True: "all of it is right",
        False: f"{failed} {'thing is' if failed == 1 else 'things are'} not right",
        None: "nothing is wrong, and not all can be told",
    }
    say(f"{path}: {verdict[found.passes]}; the run's SHA-256 is {found.digest}")
    return DONE if found.passes else CANNOT_TELL if found.passes is None else FAILED
