"""Runs opened to be asked: in a notebook, or for the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probes.errors import RunError
from probes.store.run import Run, load
from probes.viewing.packages import require_installed
from probes.viewing.session import Session
from tv.runtime.compute import Compute


def view(*runs: Run | str | Path, compute: Compute = Compute()) -> Any:
    """Both models of a run, live in a notebook: type a prompt, see both answers and where they part, mix the two.

    `probes view` serves the same in a browser, and `run.view()` is this of one run. It needs the extra `view`.

    Args:
        runs: One or more finished runs, or their paths.
        compute: The device and dtype that models compute in.

    Returns:
        An anywidget, which the notebook shows. Its `session` answers the same requests in Python.

    Raises:
        RunError: There is no such run, anywidget is not installed, or (in the page) the run's checkpoints are gone.

    Examples:
        >>> shown = probes.view("reports/demo")
        >>> shown.session.handle({"do": "open"})["runs"][0]["tuned"]
        ['medical', 'math']
    """
    require_installed("anywidget")
    from probes.viewing.widget import View

    return View(session_of(runs, compute))


def session_of(runs: Sequence[Run | str | Path], compute: Compute) -> Session:
    """What answers for these runs. Raises RunError where there is none, or one cannot be opened."""
    if not runs:
        raise RunError("no run is given; give the directory that `probes run --out` wrote")
    return Session([run if isinstance(run, Run) else load(run) for run in runs], compute)
