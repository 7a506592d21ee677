"""A checkpoint moved along tuning vectors, as a complete Hugging Face directory, one parameter in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tv.arithmetic.card import card
from tv.arithmetic.merging import Brought, Merged, bring
from tv.arithmetic.rounding import Rounding
from tv.arithmetic.saving import DTYPES, SHARD, entries, write_surroundings, write_weights
from tv.checkpoints.opening import Source, open_checkpoint
from tv.errors import CheckpointError, InputError
from tv.runtime.atomic import replacing_directory
from tv.runtime.compute import Progress


@dataclass(frozen=True)
class Applied:
    """What was written, and what is to be known of it."""

    path: Path
    rounding: Rounding  # of the parameters that moved
    conflicts: pd.DataFrame  # a row per two vectors; see tv.conflicts
    notes: tuple[str, ...]


def apply(
    base: Source,
    scales: Mapping[Source, float],
    *,
    out: str | Path,
    method: str = "sum",
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    origin: Source | None = None,
    out_dtype: str = "float32",
    stochastic_rounding: bool = False,
    seed: int = 0,
    conflicts: bool = True,
    force: bool = False,
    shard: int = SHARD,
    progress: Progress | None = None,
    **options: float,
) -> Applied:
    """Write `base` moved along the vectors in `scales`, each at its λ, to the directory `out`.

    A vector is a `TuningVector`, a file of `tv extract`, or whatever `tv.open_checkpoint` opens: then it is that minus
    `origin`, or minus `base`. `method` is one of `tv.METHODS` and `options` are its own; `only` and `exclude` are
    patterns of `tv.selection`. A sum is formed in float32 and stored as `out_dtype` (float32 or bfloat16). `out` is
    whole or absent; a checkpoint that is there stays unless `force`, and then until the new one is whole. Without
    `conflicts` it is not measured how the vectors lie to each other, which takes most of the time of a sum.

    Raises InputError in one line: a vector that does not fit, naming the first tensor, a pattern that names nothing, an
    `out` that is there, a disk that is too small.
    """
    out = Path(out)
    if out_dtype not in DTYPES:
        raise InputError(f"out_dtype {out_dtype!r}: one of {', '.join(DTYPES)}")
    if not scales:
        raise InputError("no tuning vector given; name at least one to add or to subtract")
    checkpoint = open_checkpoint(base)
    _check_out(out, [base, *scales], force)
    brought = _apart([bring(source, checkpoint, origin) for source in scales])
    merged = Merged(
        checkpoint,
        brought,
        list(scales.values()),
        method=method,
        options=options,
        only=only,
        exclude=exclude,
        dtype=DTYPES[out_dtype],
        stochastic=stochastic_rounding,
        seed=seed,
        conflicts=conflicts,
    )
    found = entries(checkpoint, merged.read, DTYPES[out_dtype])
    _check_space(out, sum(entry.size for entry in found))
    made = {
        "base": {"source": checkpoint.source, **checkpoint.fingerprint()},
        "method": method,
        "options": options,
        "vectors": [
            {"name": one.label, "scale": scale, "from": one.vector.provenance}
            for one, scale in zip(brought, scales.values(), strict=True)
        ],
        "only": list(only),
        "except": list(exclude),
        "dtype": out_dtype,
        "stochastic_rounding": stochastic_rounding,
        "seed": seed,
    }
    notes = tuple(dict.fromkeys(note for one in brought for note in one.notes))
    with replacing_directory(out, CheckpointError) as temporary:
        write_weights(temporary, found, {"tv_apply": json.dumps(made)}, shard=shard, progress=progress)
        write_surroundings(temporary, base, checkpoint, DTYPES[out_dtype])
        text = card(out.name, made, merged.rounding, notes)
        (temporary / "README.md").write_text(text, encoding="utf-8")
    return Applied(out, merged.rounding, merged.conflicts.frame(), notes)


def _apart(brought: list[Brought]) -> list[Brought]:
    """With labels that differ."""
    seen: Counter[str] = Counter()
    named = []
    for one in brought:
        seen[one.label] += 1
        n = seen[one.label]
        named.append(one if n == 1 else Brought(f"{one.label} ({n})", one.vector, one.notes, one.tokens))
    return named


def _check_out(out: Path, sources: Sequence[Source], force: bool) -> None:
    if not out.resolve().parent.is_dir():
        raise CheckpointError(f"{out}: its directory does not exist; make it first")
    if not out.exists():
        return
    if any(isinstance(source, str | Path) and Path(source).resolve() == out.resolve() for source in sources):
        raise CheckpointError(f"{out}: is read from; write to another directory")
    if not force:
        raise CheckpointError(f"{out}: is there already; name another directory, or replace it with --force")
    if not (out / "config.json").is_file():
        raise CheckpointError(f"{out}: is no checkpoint and is not replaced; remove it, or name another directory")


def _check_space(out: Path, size: int) -> None:
    free = shutil.disk_usage(out.resolve().parent).free
    if size > free:
        raise CheckpointError(f"{out}: needs {size:,} bytes and the disk has {free:,}; free some, or use bfloat16")
