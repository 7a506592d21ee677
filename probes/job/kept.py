"""What of a run is there and what is still to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probes.attribution.kept import Kept
from probes.capture.batch_files import kept_prompts
from probes.store.journal import KEPT
from probes.store.writer import RunWriter

if TYPE_CHECKING:
    from probes.job.job import Job


def what_is_kept(writer: RunWriter, job: Job) -> str:
    """What of the run is there and what is still to do, in a line; empty where nothing is there."""
    kept, left = list[str](), list[str]()
    names = [pair.name for pair in job.pairs]
    for stage in job.stages:
        if stage == "capture" and job.suite.tokenizer == "base":
            for name in names:
                whole, n = set(writer.done("capture")), len(job.prompts)
                done = sum(
                    len(shard.encoded) if shard.name in whole else kept_prompts(writer.path, shard.name)
                    for shard in job.shards(name)
                )
                kept += [f"capture {name} of {done} of {n} prompts"] * (done > 0)
                left += [f"capture {name} of {n - done} prompts"] * (done < n)
        elif stage in ("weights", "attribute"):
            whole = set(writer.done("effects" if stage == "attribute" else stage))
            for i, name in enumerate(names):
                part = Kept(writer.path / KEPT / name).words if stage == "attribute" else ""
                here = f"{i:05d}" in whole
                kept += [f"{stage} {name}"] * here + [f"attribute {name}: {part}"] * (bool(part) and not here)
                left += [] if here else [f"{stage} {name}"]
        else:
            (kept if writer.done(stage) else left).append(stage)
    more = f"added: {job.added}; " if job.added else ""
    return f"{more}kept: {', '.join(kept)}; to do: {', '.join(left)}" if kept else ""
