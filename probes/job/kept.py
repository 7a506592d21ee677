"""What of a run is there and what is still to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from probes.attribution.kept import Kept
from probes.capture.batch_files import kept_prompts
from probes.capture.passed_layers import kept_layers
from probes.discovery.kept import Kept as KeptDiscovery
from probes.discovery.observing import sides_of
from probes.job.stages import FLOORS, MODULES
from probes.store.journal import KEPT
from probes.store.writer import RunWriter

if TYPE_CHECKING:
    from probes.job.job import Job


def what_is_kept(writer: RunWriter, job: Job) -> str:
    """What of the run is there and what is still to do, in a line; empty where nothing is there."""
    pieces = [piece for stage in job.stages for piece in _pieces(writer, job, stage)]
    kept, left = ([words for words in side if words] for side in zip(*pieces, strict=True))
    more = f"; added: {job.added}" if job.added else ""
    return f"resuming{more}; done already: {', '.join(kept)}; still to do: {', '.join(left)}" if kept else ""


def _pieces(writer: RunWriter, job: Job, stage: str) -> Iterator[tuple[str, str]]:
    """What is there of every piece of a stage, and what is left of it; either may be empty."""
    names = [pair.name for pair in job.pairs]
    if stage == "capture" and job.suite.tokenizer == "base":
        yield from (_captured(writer, job, name) for name in names)
    elif stage in ("weights", "discover", "attribute"):
        whole = writer.done("effects" if stage == "attribute" else stage)
        for i, name in enumerate(names):
            piece = f"{stage} {name}"
            if f"{i:05d}" in whole:
                yield piece, ""
            else:
                part = {"weights": _measured, "discover": _seen, "attribute": _attributed}[stage](writer, job, i)
                yield f"{piece}: {part}" if part else "", piece
    elif writer.done(stage):
        yield stage, ""
    else:
        part = _floors(writer) if stage == "noise_floor" else ""
        yield f"{stage}: {part}" if part else "", stage


def _captured(writer: RunWriter, job: Job, name: str) -> tuple[str, str]:
    whole, n, n_layers = set(writer.done("capture")), len(job.prompts), job.pairs[0].base.architecture.n_layers
    done, there, left = 0, list[str](), list[str]()
    for shard in job.shards(name):
        kept = len(shard.encoded) if shard.name in whole else kept_prompts(writer.path, shard.name)
        done, more = done + kept, len(shard.encoded) - kept
        ids = [item.prompt.id for item in shard.encoded]
        passed = kept_layers(writer.path, shard.name, ids) if more and job.models.streams else 0
        if passed:
            there.append(f"{passed} of {n_layers} layers of another {more}")
            left.append(f"{more} need {n_layers - passed} of {n_layers} layers")
    some = f", of which {' and '.join(left)}" if left else ""
    return (
        f"capture {name} ({' and '.join([f'{done} of {n} prompts', *there])})" if done or there else "",
        f"capture {name} ({n - done} prompts{some})" if done < n else "",
    )


def _attributed(writer: RunWriter, job: Job, i: int) -> str:
    return Kept(writer.path / KEPT / job.pairs[i].name).words


def _seen(writer: RunWriter, job: Job, i: int) -> str:
    done, wanted = KeptDiscovery(writer.folder("discover", f"{i:05d}")).done, job.suite.discover
    return f"{done} of {len(sides_of(wanted.controls, wanted.draws))} models" if wanted and done else ""


def _measured(writer: RunWriter, job: Job, i: int) -> str:
    done, pair = len(writer.unfinished("weights", f"{i:05d}", MODULES)), job.pairs[i]
    return f"{done} of {len(pair.weights.rows)} modules" if done else ""


def _floors(writer: RunWriter) -> str:
    done = {floor: len(writer.unfinished("noise_floor", "00000", floor)) for floor in FLOORS}
    return " and ".join(f"{n} {'batch' if n == 1 else 'batches'} of {floor}" for floor, n in done.items() if n)
