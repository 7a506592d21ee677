"""`probes demo`."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from probes.cli.run import run
from tv.cli.terminal import remark


def demo(
    out: Annotated[str, typer.Option(help="Where to write the run: a directory or a URL (s3://…).")] = "reports/demo",
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is there.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the report in the browser at the end.")] = False,
) -> None:
    """Try it: the main job on two small fine-tuned models that come with the package, in a few minutes on a CPU.

    Rerun the same command to resume a demo that was interrupted.

    Example: probes demo --out reports/demo
    """
    from probes.errors import RunError
    from probes.starting.demo import demo_suite

    if show and "://" in out:
        raise RunError(f"{out}: --open needs a run in a directory; leave it out")
    # So small are the models that several threads wait for each other more than they work.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    suite = demo_suite()
    remark(f"the demo's models, prompts and suite are in {suite.parents[1]}; the run goes to {out}")
    run(suite=suite, out=out, force=force)
    if show:
        webbrowser.open(Path(out, "report.html").resolve().as_uri())
