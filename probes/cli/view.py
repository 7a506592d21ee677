"""`probes view`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tv.cli.options import Device, Dtype, Offload
from tv.cli.terminal import announce, remark
from tv.runtime.compute import Compute

#: Where runs are looked for when none is named: where the demo's is.
_REPORTS = Path("reports")


def view(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Directories of runs; without any, those in reports/."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port of the page; 0 is any free one.")] = 0,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser, or only print its address.")
    ] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
) -> None:
    """Ask both models of a run live, on a page of this machine: answers, KL, logit lens, and a mix of the two.

    Example: probes view reports/demo
    """
    from probes.errors import RunError
    from probes.viewing.packages import require_installed

    require_installed("fastapi", "uvicorn")
    found = paths or sorted(str(manifest.parent) for manifest in _REPORTS.glob("*/manifest.json"))
    if not found:
        raise RunError(f"{_REPORTS}/: there is no run in it; name one: probes view RUN")
    remark("Starting. The page is for this machine only; press Ctrl-C to stop.")
    from probes.viewing.opening import session_of
    from probes.viewing.server import serve

    session = session_of(found, Compute(device, dtype, offload))
    serve(session, port=port, open_browser=open_browser, told=partial(announce, "address"))
