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
from tv.arithmetic.merging import Brought, Merged, bring, of_one_form
from tv.arithmetic.rounding import Rounding
from tv.arithmetic.saving import DTYPES, SHARD, entries, write_surroundings, write_weights
from tv.checkpoints.opening import Source, open_checkpoint
from tv.errors import CheckpointError, InputError, choices
from tv.runtime.atomic import replacing_directory
from tv.runtime.progress import ProgressOption


@dataclass(frozen=True)
class Applied:
    """What `tv.apply` wrote, what rounding lost, how the vectors conflict, and notes.

    Attributes:
        path: The directory.
        rounding: What storing lost of the parameters that moved; `rounding.ratio` is ‖T‖ over the size of the loss.
        conflicts: A row per two vectors, `a b cosine cosine_z sign_conflict sign_conflict_null conflict_energy
            cosine_shared_z overlap_left_kappa overlap_right_kappa` as `tv.cosine` measures them; the last two are means
            over matrices. The last three are NaN unless `directions` were asked for.
        notes: What a reader should know of the vectors, a line each.

    Examples:
        >>> vectors = {"data/models/medical": 0.7, "data/models/math": 0.3}
        >>> applied = tv.apply("data/models/base", vectors, out="both", only=["layer=0"])
        >>> applied.conflicts[["a", "b"]].values.tolist()
        [['medical', 'math']]
    """

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
    directions: bool = False,
    force: bool = False,
    shard: int = SHARD,
    progress: ProgressOption = None,
    **options: float,
) -> Applied:
    """Write `base` moved along tuning vectors to a directory: θ + Σ λT, or what a method makes of the λT.

    The sum is formed in float32, one parameter in memory at a time.

    Args:
        base: The model that moves: whatever `tv.open_checkpoint` opens.
        scales: λ by vector. A vector is a `TuningVector`, a file of `tv extract`, or whatever `tv.open_checkpoint`
            opens: then it is that minus `origin`.
        out: The directory, written whole or not at all; its parent directory must exist.
        method: One of `tv.METHODS`.
        only: Patterns that name what moves; without any, all of it. A pattern is `layer=3`, `layer=0-3`, `expert=2`, a
            module (`gate`), a component (`attn`, `mlp`), `norm`, `bias`, or a parameter's name with `*` for anything.
            Of several, joined by commas, all must hold: `layer=0-3,mlp`.
        exclude: Patterns that name what does not move.
        origin: What the models in `scales` were tuned from; without it, `base`.
        out_dtype: What is stored: "float32" or "bfloat16".
        stochastic_rounding: Round to bfloat16 at random, so that steps too small for it survive on average.
        seed: Of what the method draws, and of stochastic rounding.
        conflicts: Measure how the vectors conflict, entry by entry, as they are merged.
        directions: Measure also how the directions of their matrices lie, with a decomposition of each, which takes
            many times as long as a sum. `conflicts` may then be left out.
        force: Replace the checkpoint at `out`, once the new one is complete.
        shard: Bytes of tensors in a file, at most; a tensor that is larger has a file to itself.
        progress: Called after every tensor; see `Compute.progress`.
        options: Options of the method, such as `density` or `fraction`.

    Returns:
        The directory, what rounding lost, how the vectors conflict, and notes.

    Raises:
        InputError: An invalid method, option, pattern, dtype or scale, or no vector.
        CheckpointError: A vector that does not fit, naming the first tensor; an `out` that exists, or a disk that is
            too small.

    Source: arXiv 2212.04089 §2 (the sum); `tv.METHODS` names those of the other methods.

    Examples:
        >>> applied = tv.apply("data/models/base", {"data/models/medical": 0.5}, out="half")
        >>> medical = tv.extract("data/models/base", "data/models/medical")
        >>> half = tv.extract("data/models/base", applied.path)
        >>> round(half.norm() / medical.norm(), 3), round(half.cosine(medical), 3)
        (0.5, 1.0)
    """
    out = Path(out)
    if out_dtype not in DTYPES:
        raise InputError(f"no out_dtype {out_dtype!r}{choices(out_dtype, DTYPES)}")
    if not scales:
        raise InputError("no tuning vector given; name at least one to add or to subtract")
    checkpoint = open_checkpoint(base)
    check_out(out, [base, *scales], force)
    checkpoint, brought = of_one_form(checkpoint, _apart([bring(source, checkpoint, origin) for source in scales]))
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
        directions=directions,
    )
    tensors = entries(checkpoint, merged, DTYPES[out_dtype])
    check_space(out, sum(entry.size for entry in tensors))
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
        write_weights(temporary, tensors, {"tv_apply": json.dumps(made)}, shard=shard, progress=progress)
        write_surroundings(temporary, base, checkpoint, DTYPES[out_dtype])
        text = card(out.name, made, merged.rounding, notes)
        (temporary / "README.md").write_text(text, encoding="utf-8")
    return Applied(out, merged.rounding, merged.conflicts.frame(), notes)


def _apart(brought: list[Brought]) -> list[Brought]:
    """The same vectors with distinct labels."""
    seen: Counter[str] = Counter()
    named = []
    for one in brought:
        seen[one.label] += 1
        n = seen[one.label]
        named.append(one if n == 1 else Brought(f"{one.label} ({n})", one.vector, one.notes, one.tokens))
    return named


def check_out(out: Path, sources: Sequence[Source], force: bool) -> None:
    """Raise CheckpointError where no checkpoint may be written to `out`."""
    if not out.resolve().parent.is_dir():
        raise CheckpointError(f"{out}: its directory does not exist; create it first")
    if not out.exists():
        return
    if any(isinstance(source, str | Path) and Path(source).resolve() == out.resolve() for source in sources):
        raise CheckpointError(f"{out}: is read from; write to another directory")
    if not force:
        raise CheckpointError(f"{out}: already exists; name another directory, or use --force to replace it")
    if not (out / "config.json").is_file():
        raise CheckpointError(f"{out}: is not a checkpoint, so it is not replaced; name another directory")


def check_space(out: Path, size: int) -> None:
    """Raise CheckpointError where the disk of `out` has fewer bytes free."""
    free = shutil.disk_usage(out.resolve().parent).free
    if size > free:
        raise CheckpointError(f"{out}: needs {size:,} bytes and the disk has {free:,}; free some, or use bfloat16")
