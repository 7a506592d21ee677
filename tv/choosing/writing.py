"""A choice as a checkpoint or a LoRA adapter, with a card that says how it was chosen."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from tv.arithmetic.adapter_writer import check_out as check_adapter
from tv.arithmetic.apply import apply, check_out, check_space
from tv.arithmetic.lora import lora_export
from tv.arithmetic.saving import DTYPES
from tv.checkpoints.live import LiveSource
from tv.checkpoints.opening import Source, open_checkpoint
from tv.checkpoints.vector import TuningVector
from tv.errors import CheckpointError, InputError, choices
from tv.runtime.atomic import replacing_directory
from tv.runtime.compute import Compute

As: TypeAlias = Literal["checkpoint", "lora"]


@dataclass(frozen=True)
class Written:
    """What is to be written: a base moved by vectors, and the lines of its card."""

    base: LiveSource
    scales: Mapping[TuningVector, float]  # of an adapter, one
    out: Path
    title: str
    lines: Sequence[str]
    method: str = "sum"
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def require_writable(
    out: Path | None, form: As, rank: int | None, out_dtype: str, sources: Sequence[Source], force: bool
) -> None:
    """Raise InputError or CheckpointError where this could not be written at the end; before any work."""
    if form not in get_args(As):
        raise InputError(f"no form {form!r}{choices(form, get_args(As))}")
    if out_dtype not in DTYPES:
        raise InputError(f"no out_dtype {out_dtype!r}{choices(out_dtype, DTYPES)}")
    if form == "lora" and (rank is None or rank < 1):
        raise InputError("an adapter needs a rank of at least 1: give --rank")
    if form != "lora" and rank is not None:
        raise InputError("--rank is of an adapter; add --as lora, or leave it out")
    if out is None:
        return
    if form == "lora":
        check_adapter(out, force)
        return
    check_out(out, sources, force)
    checkpoint = open_checkpoint(sources[0])
    entries = sum(math.prod(checkpoint.info(name).shape) for name in checkpoint.values)
    check_space(out, entries * DTYPES[out_dtype].itemsize)


def beside(out: Path | None, report: str | Path | None, suffix: str) -> Path | None:
    """Where tables and finished points go. Raises InputError for a place inside `out`: writing that replaces it."""
    if report is None:
        return out and out.with_name(f"{out.name}-{suffix}")
    place = Path(report)
    if out is not None and out.resolve() in (place.resolve(), *place.resolve().parents):
        raise InputError(f"{report}: inside {out}, which is written whole at the end; give a directory beside it")
    return place


def write_choice(chosen: Written, *, form: As, rank: int | None, out_dtype: str, force: bool, compute: Compute) -> Path:
    """Write it, whole or not at all; returns the directory."""
    with replacing_directory(chosen.out, CheckpointError) as temporary:
        inside = temporary / chosen.out.name
        if form == "lora":
            (vector,) = chosen.scales
            lora_export(chosen.base, vector, out=inside, rank=rank, progress=compute.progress)
            card = _ADAPTER
        else:
            apply(
                chosen.base,
                {vector: scale for vector, scale in chosen.scales.items()},
                out=inside,
                method=chosen.method,
                out_dtype=out_dtype,
                seed=chosen.seed,
                progress=compute.progress,
                **chosen.options,
            )
            card = (inside / "README.md").read_text(encoding="utf-8")
        (inside / "README.md").write_text(_card(card, chosen), encoding="utf-8")
        for file in inside.iterdir():
            shutil.move(file, temporary / file.name)
        inside.rmdir()
    return chosen.out


_ADAPTER = "---\nlibrary_name: peft\n---\n"


def _card(card: str, chosen: Written) -> str:
    """The card with how it was chosen at its end."""
    said = card.replace(" It was not trained, and nobody has evaluated it here.", " It was not trained.")
    return said + "\n".join(["", f"## {chosen.title}", "", *chosen.lines, ""])
