"""`probes.run`: from a suite to a finished run, the estimated time first where a person waits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probes.forecast import estimated
from probes.job.prepare import prepare
from probes.store.run import Run
from tv.checkpoints.live import LiveSource
from tv.runtime.compute import Compute
from tv.runtime.progress import is_watched


def run(
    suite: str | Path | Mapping[str, Any],
    *,
    base: LiveSource | None = None,
    tuned: LiveSource | Mapping[str, LiveSource] | None = None,
    out: str | Path | None = None,
    force: bool = False,
    stages: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    remote: bool = False,
    compute: Compute = Compute(),
) -> Run:
    """Run a probe suite: check the pairs, measure weights, capture activations, attribute, link, report.

    Rerun the same call to resume a run that was killed. A finished run is returned unchanged. On a terminal or in a
    notebook the estimated time is printed first.

    Args:
        suite: A YAML file's path, or the same as a mapping.
        base: In place of the suite's: a directory, a hub id or a live model, Hugging Face's or a TransformerBridge.
        tuned: In place of the suite's, one or several by name.
        out: A directory or a URL (s3://bucket/run); reports/<suite name> without it.
        force: Make the run again, and replace another that is there.
        stages: Which to do of weights, capture, noise_floor, attribute, link and report; all without it. A run with
            fewer is a finished run without the others' tables; the same call with more stages adds what is missing.
        settings: Keys that win over the suite's, such as {"keep": ["resid_post"], "generate": {"tokens": 8}}.
        remote: Let nnsight's server capture.
        compute: Where and how. Its workers share the modules and the prompts; the tables are the same.

    Returns:
        The finished run.

    Raises:
        InputError: Bad input, in one line; nothing is left behind.

    Examples:
        >>> less = {"tuned": "data/models/medical", "stages": ["capture"], "settings": {"measure": ["gates"]}}
        >>> probes.run("data/suites/demo.yaml", out="reports/gates", **less).tables
        ['prompts', 'tokens', 'predictions', 'gates', 'neurons']
    """
    job = prepare(
        suite,
        base=base,
        tuned=tuned,
        out=out,
        force=force,
        stages=stages,
        settings=settings,
        remote=remote,
        compute=compute,
    )
    if compute.progress is None and is_watched() and not job.is_done:
        for line in estimated(job):
            print(line, file=sys.stderr)
    return job.run()
