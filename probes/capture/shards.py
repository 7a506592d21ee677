"""Shards, made by this process or by workers: the rows are the same.

A worker loads the pair, writes its shards' files, and hands back their manifest rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from probes.capture.batch_files import kept_prompts
from probes.capture.loading import Pairs
from probes.capture.runner import Shard, run_shard
from probes.errors import RunError
from probes.store.journal import Row
from probes.store.remote import Url, fetch, upload
from tv.runtime.compute import Compute
from tv.runtime.scheduler import finished

Told = Callable[[int], None]


def run_shards(
    shards: Sequence[Shard],
    pairs: Pairs,
    directory: Path,
    *,
    compute: Compute = Compute(),
    via: Url | None = None,
    progress: Told | None = None,
) -> Iterator[Row]:
    """The manifest row of every shard, as it is finished; its files are below `directory` then.

    Workers on Ray write to `directory` too, which the machines of a cluster must share, or to `via`, from where files
    are fetched. `progress` gets the number of prompts done, those of batches that were kept left out. Raises as
    `tv.runtime.scheduler.finished` does.
    """
    place = via if via and compute.engine == "ray" else directory
    here = None if compute.elsewhere else progress
    kept = {shard.name: kept_prompts(directory, shard.name) for shard in shards}
    for _, row in finished(
        shards,
        lambda device: Capture(pairs.on(device), place, here),
        compute,
        name=lambda shard: shard.name,
        relief="use fewer --workers or a smaller batch_size",
    ):
        fetch(row.pop("files", {}), directory)
        if progress and compute.elsewhere:
            progress(row["prompts"] - kept[row["shard"]])
        yield row


def require_sources(pairs: Pairs) -> None:
    """Raise InputError, before any work, where other processes could not do it."""
    if pairs.compute.elsewhere and pairs.live:
        raise RunError(
            f"{', '.join(pairs.live)}: a live model cannot be sent to other processes; pass its path, or leave workers "
            "at 1 and the engine local"
        )


@dataclass
class Capture:
    """What a worker does with a shard: run it, put its files in place, and return its manifest row."""

    pairs: Pairs
    place: Path | Url
    progress: Told | None = None

    def __call__(self, shard: Shard) -> Row:
        session = self.pairs.session(shard.tuned)
        if isinstance(self.place, Path):
            return run_shard(shard, session, self.place, self.progress)
        with tempfile.TemporaryDirectory() as directory:
            row = run_shard(shard, session, Path(directory), self.progress)
            return {**row, "files": upload(Path(directory), self.place)}
