"""`tv apply`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tv.cli.options import Base, Device
from tv.cli.registered import options_from
from tv.cli.terminal import bar, print_notes, print_table, wrote
from tv.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from pydantic.fields import FieldInfo

    from tv.checkpoints.opening import Source

Stored = Literal["float32", "bfloat16"]
_VECTOR = "A checkpoint, an adapter, or a file that tv extract wrote; λ is 1 by default. Repeatable."


def _options() -> Mapping[str, FieldInfo]:
    from tv.arithmetic.methods.compose import options_of_methods

    return options_of_methods()


def _helps() -> dict[str, str]:
    import tv

    return {"method": f"How to combine several vectors: {', '.join(tv.METHODS)}."}


@options_from(_options, _helps)
def apply(
    base: Base,
    output: Annotated[Path, typer.Option("-o", "--output", help="The directory to write.")],
    add: Annotated[list[str] | None, typer.Option(metavar="VECTOR[:λ]", help=_VECTOR)] = None,
    subtract: Annotated[list[str] | None, typer.Option(metavar="VECTOR[:λ]", help="The same, subtracted.")] = None,
    method: Annotated[str, typer.Option(help="How to combine several vectors.")] = "sum",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these parts: layer=0-3, gate, mlp, norm, or a glob; commas mean and. Repeatable.",
            show_default="all",
        ),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave these parts out. Repeatable.")] = None,
    excepted: Annotated[list[str] | None, typer.Option("--except", hidden=True)] = None,
    origin: Annotated[
        str | None,
        typer.Option(help="The model that the vectors' checkpoints were tuned from.", show_default="BASE"),
    ] = None,
    out_dtype: Annotated[Stored, typer.Option(help="The dtype of the stored weights.")] = "float32",
    dtype: Annotated[Stored | None, typer.Option(hidden=True)] = None,
    stochastic_rounding: Annotated[
        bool, typer.Option(help="Round to bfloat16 up or down at random, correct on average.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of dare's masks and of stochastic rounding.")] = 0,
    conflicts: Annotated[bool, typer.Option(help="Measure how much the vectors conflict, entry by entry.")] = True,
    directions: Annotated[
        bool, typer.Option("--directions", help="Also measure which directions they share; much slower than a sum.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Replace an existing checkpoint.")] = False,
    search: Annotated[
        list[Path] | None,
        typer.Option(help="Search for the λ: a file of prompts of one domain. Give it for two or more domains."),
    ] = None,
    over: Annotated[
        Literal["vectors", "components"],
        typer.Option(help="With --search: one λ per vector, or one per component of each vector."),
    ] = "vectors",
    budget: Annotated[int, typer.Option(help="With --search: evaluations per search.")] = 100,
    metric: Annotated[
        str | None,
        typer.Option(help="With --search: a behaviour metric.", show_default="NLL of the targets, or of the texts"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="With --search: prompts in one forward pass.")] = 16,
    device: Device = "cpu",
    **options: Any,
) -> None:
    """Write a checkpoint of BASE plus tuning vectors: θ + Σ λT, or another way to combine the λT.

    Example: tv apply data/models/base --add data/models/medical:0.7 --add data/models/math:0.3 -o both
    """
    import tv
    from tv.arithmetic.card import in_words

    stored: Stored = dtype or out_dtype  # --dtype and --except are earlier names of --out-dtype and --exclude
    scales = _scales(add or [], subtract or [])
    if search:
        _require_searchable(scales, origin, stochastic_rounding, [*(only or []), *(exclude or []), *(excepted or [])])
        from tv.cli.searching import search_and_write

        search_and_write(
            base,
            list(scales),
            search,
            output,
            over=over,
            budget=budget,
            metric=metric,
            batch_size=batch_size,
            device=device,
            method=method,
            out_dtype=stored,
            seed=seed,
            force=force,
            **options,
        )
        return
    if (over, budget, metric) != ("vectors", 100, None):
        raise InputError("--over, --budget and --metric need --search PROMPTS; add it or leave them out")
    with bar("apply") as progress:
        applied = tv.apply(
            base,
            scales,
            out=output,
            method=method,
            only=only or [],
            exclude=[*(exclude or []), *(excepted or [])],
            origin=origin,
            out_dtype=stored,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            conflicts=conflicts,
            directions=directions,
            force=force,
            progress=progress,
            **options,
        )
    print_notes(applied.notes)
    _print_conflicts(applied.conflicts)
    wrote(applied.path, f"stored as {stored}; {in_words(applied.rounding)}")


def _require_searchable(scales: Mapping[Source, float], origin: str | None, stochastic: bool, parts: list[str]) -> None:
    """Raise InputError for what a search does not take."""
    given = next((source for source, scale in scales.items() if scale != 1.0), None)
    if given is not None:
        raise InputError(f"{given}: --search finds λ; leave λ out, and add vectors rather than subtract them")
    if origin is not None or stochastic or parts:
        raise InputError(
            "--search does not work with --origin, --only, --exclude or --stochastic-rounding; leave them out"
        )


def _scales(add: list[str], subtract: list[str]) -> dict[Source, float]:
    """Source → λ, in the order given, additions first."""
    scales: dict[Source, float] = {}
    for sign, arguments in ((1.0, add), (-1.0, subtract)):
        for argument in arguments:
            source, scale = split(argument)
            if source in scales:
                raise InputError(f"{source}: given twice; give it once with the sum of both λ")
            scales[source] = sign * scale
    return scales


def split(argument: str) -> tuple[str, float]:
    """(source, λ) of `SOURCE:λ`. An argument that exists on disk as a whole is a source; so is one without a λ."""
    source, colon, scale = argument.rpartition(":")
    if not colon or Path(argument).exists():
        return argument, 1.0
    try:
        return source, float(scale)
    except ValueError:
        if Path(source).exists():
            raise InputError(f"{argument!r}: λ is {scale!r}, which is not a number; give VECTOR:λ") from None
        return argument, 1.0


def _print_conflicts(conflicts: pd.DataFrame) -> None:
    from tv.measures.cosine import COSINES

    if conflicts.empty:
        return
    columns = {
        "vectors": conflicts.a + " and " + conflicts.b,
        COSINES["cosine"].title: conflicts.cosine,
        COSINES["cosine_z"].title: conflicts.cosine_z,
        COSINES["sign_conflict"].title: conflicts.sign_conflict,
        COSINES["sign_conflict_null"].title: conflicts.sign_conflict_null,
        "by size": conflicts.conflict_energy,
    }
    title = "how much the vectors conflict where they are merged"
    if conflicts.overlap_left_kappa.notna().any():
        title += "; shared z: the cosine's among shared directions; κ: shared directions beyond their null"
        columns |= {"shared z": conflicts.cosine_shared_z}
        columns |= {"κ left": conflicts.overlap_left_kappa, "κ right": conflicts.overlap_right_kappa}
    print_table(title, list(columns), [list(row) for row in zip(*columns.values(), strict=True)])
