"""`tv align`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tv.cli.options import Base, Device, Dtype, Output, Tuned
from tv.cli.output import check_output, write
from tv.cli.prompt_options import prompt_sets, reads_prompts
from tv.cli.terminal import Shown, bar, print_notes, print_table, say
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    import pandas as pd

    from tv.checkpoints.checkpoint import Checkpoint


@reads_prompts
def align(
    base: Base,
    tuned: Tuned,
    on: Annotated[
        Literal["weights", "activations"], typer.Option(help="What neurons and heads are matched by.")
    ] = "weights",
    prompts: Annotated[
        list[Path] | None,
        typer.Option(help="With --on activations, a prompt file: JSONL, JSON, CSV, TSV or Parquet; repeatable."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts in one forward pass.")] = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    ssa: Annotated[
        Path | None,
        typer.Option(help="Write the SSA table of the matched pair to this file, with a column ssa_before."),
    ] = None,
    output: Output = None,
    **reading: Any,
) -> None:
    """Check that the tuned weights have the base's order, scale and basis, as those of a fine-tune of the base do.

    Example: tv align data/models/base data/models/medical --ssa matched.parquet
    """
    import tv
    from tv.matching.matching import match_pair

    check_output(output)
    check_output(ssa)
    sets = prompt_sets(prompts or (), **reading)
    with bar("matching") as progress:
        matched = match_pair(
            base,
            tuned,
            on=on,
            prompts=sets,
            batch_size=batch_size,
            compute=tv.Compute(device, dtype, progress=progress),
        )
    _print(matched.table)
    write(matched.table, output)
    if ssa is not None:
        with bar("alignment") as progress:
            before = tv.ssa(base, tuned, compute=tv.Compute(device, dtype, progress=progress))
        after = before
        if not matched.is_identity:
            with bar("alignment") as progress:
                after = tv.ssa(base, matched.tuned, compute=tv.Compute(device, dtype, progress=progress))
        frame = after.copy()
        frame.insert(list(frame.columns).index("ssa"), "ssa_before", before["ssa"])
        fingerprints = before.attrs["fingerprints"] | {"matched": after.attrs["fingerprints"]["tuned"]}
        frame.attrs["fingerprints"] = fingerprints
        write(frame, ssa)


def aligned(base: str, tuned: str) -> Checkpoint:
    """The tuned side of another command, matched to the base; prints what that explains of T."""
    from tv.matching.matching import match_pair

    with bar("matching") as progress:
        matched = match_pair(base, tuned, compute=Compute(progress=progress))
    say(f"aligned: {matched.sameness.sentence}")
    return matched.tuned


def _print(table: pd.DataFrame) -> None:
    """A row per kind, means over layers and experts weighted by the number of units, then the verdict."""
    rows: list[list[object]] = []
    for kind, group in table.groupby("kind", sort=False):
        n = group["n"]
        shares = [_percent((group[name] * n).sum(min_count=1) / n.sum()) for name in _SHARES]
        scores = [float((group[name] * n).sum() / n.sum()) for name in ("identity_score", "mean_score", "gain")]
        rows.append([str(kind).replace("_", " "), int(n.sum()), *shares, *scores])
    headings = ["kind", "n", "moved", "flipped", "rescaled", "score", "matched", "gain"]
    print_table(f"what would change to match the base, compared by {table['on'].iloc[-1]}", headings, rows)
    found = table.attrs.get("sameness")
    if found is not None:
        say(found["sentence"])
    if found is not None and found["changes"]:
        say("to measure the matched pair, use --ssa FILE, --align in other commands, or tv.matched")
    print_notes(table.attrs.get("notes", ()))


_SHARES = ["moved_fraction", "sign_flipped_fraction", "scale_moved_fraction"]


def _percent(share: float) -> Shown:
    return Shown(share, "–" if math.isnan(share) else f"{100 * share:.3g} %")
