"""`tv lora-export` and `tv lora-init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tv.cli.options import Base
from tv.cli.terminal import Shown, bar, number, print_notes, print_table, say, wrote

if TYPE_CHECKING:
    from tv.arithmetic.adapter_writer import Adapter

Vector = Annotated[
    str, typer.Argument(metavar="VECTOR", help="A file that tv extract wrote, a tuned checkpoint, or an adapter.")
]
Directory = Annotated[Path, typer.Option("-o", "--output", help="The directory of the adapter to write.")]
Origin = Annotated[
    str | None, typer.Option(help="The model that VECTOR, a checkpoint, was tuned from.", show_default="BASE")
]
Force = Annotated[bool, typer.Option(help="Replace an existing adapter.")]
_SHOWN = 12


def lora_export(
    base: Base,
    vector: Vector,
    output: Directory,
    rank: Annotated[int | None, typer.Option(help="The rank of every matrix; give either this or --energy.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="The share of ‖T‖² that each matrix keeps, at the smallest rank that does.")
    ] = None,
    others: Annotated[
        bool, typer.Option(help="Also save the parameters that LoRA cannot hold (norms, biases, embeddings) in full.")
    ] = True,
    origin: Origin = None,
    force: Force = False,
) -> None:
    """Write a tuning vector as a LoRA adapter that peft loads: its truncated SVD, matrix by matrix.

    Example: tv lora-export data/models/base data/models/medical --rank 16 -o medical-r16
    """
    import tv

    with bar("adapter") as progress:
        adapter = tv.lora_export(
            base,
            vector,
            out=output,
            rank=rank,
            energy=energy,
            save_others=others,
            origin=origin,
            force=force,
            progress=progress,
        )
    rows: list[list[object]] = [
        [row.layer, row.module, row.rank, *(Shown(share, f"{share:.1%}") for share in (row.retained, row.share))]
        for row in adapter.modules.itertuples()
    ]
    print_table("energy retained", ["layer", "module", "rank", "of its ‖T‖²", "its share"], rows)
    _print_others(adapter)
    wrote(adapter.path, f"holds {adapter.retained:.1%} of ‖T‖²")


def lora_init(
    base: Base,
    vector: Vector,
    output: Directory,
    rank: Annotated[int, typer.Option(help="The rank of every matrix.")],
    mode: Annotated[
        Literal["warm", "subspace", "orthogonal"],
        typer.Option(
            help="warm: start at T's leading directions; subspace: read only their inputs; orthogonal: none of them."
        ),
    ],
    origin: Origin = None,
    seed: Annotated[int, typer.Option(help="Seed of the directions of orthogonal.")] = 0,
    force: Force = False,
) -> None:
    """Write a LoRA adapter to start training from, in or outside the leading directions of a vector.

    Example: tv lora-init data/models/base data/models/medical --rank 8 --mode subspace -o start
    """
    import tv

    with bar("adapter") as progress:
        adapter = tv.lora_init(
            base, vector, out=output, rank=rank, mode=mode, origin=origin, seed=seed, force=force, progress=progress
        )
    _print_others(adapter)
    wrote(adapter.path, f"{len(adapter.modules)} matrices, {_in_words(mode, adapter)}")


def _in_words(mode: str, adapter: Adapter) -> str:
    if mode == "warm":
        return f"starts with {number(adapter.retained)} of ‖T‖²"
    inside = "T's leading input directions" if mode == "subspace" else "directions orthogonal to T's leading ones"
    return f"starts at the base, A in {inside}; call tv.freeze_inputs(model) before training to keep it there"


def _print_others(adapter: Adapter) -> None:
    """What LoRA cannot hold, by name."""
    print_notes(adapter.notes)
    if adapter.others.empty:
        return
    for held, words in ((True, "saved in full next to the factors"), (False, "left out")):
        listed = adapter.others[adapter.others.held == held]
        if len(listed):
            named = [f"{row.parameter} {_percent(row.share)}" for row in listed.head(_SHOWN).itertuples()]
            more = f" and {len(listed) - _SHOWN} smaller ones" if len(listed) > _SHOWN else ""
            say(f"{words}, {listed.share.sum():.1%} of ‖T‖²: {', '.join(named)}{more}")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 5e-4 else "< 0.1%"
