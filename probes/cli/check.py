"""`probes check`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from probes.cli.gate import STATUS
from tv.cli.options import Base, Device, Dtype, Tuned
from tv.cli.terminal import bar, interval, number, print_notes, print_table, say
from tv.errors import InputError
from tv.runtime.compute import Compute


def check(
    base: Base,
    tuned: Tuned,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="A file of texts, separated by blank lines.", show_default="texts that come with the program"
        ),
    ] = None,
    at_most: Annotated[
        float | None, typer.Option(min=0.0, help="The largest KL allowed, in nats per token.", show_default="any")
    ] = None,
    draws: Annotated[int, typer.Option(min=39, help="Draws of random T, at most; 20 if these settle it.")] = 39,
    longest: Annotated[int, typer.Option(min=2, help="Tokens to read of each text, at most.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random T.")] = 0,
    keep: Annotated[
        Path | None,
        typer.Option(help="A directory that stores finished draws: rerun the same command to resume."),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> int:
    """In a minute, without a suite: does the tuning change predictions on general texts more or less than random T?

    Measures KL(base ‖ tuned) over the whole vocabulary, next to random T of the same norm and effective rank.

    Exit status: 0 if it differs from random T, 4 if it does not, 3 if nothing changed or the KL is above --at-most.

    Example: probes check data/models/base data/models/medical
    """
    own = _read(texts)
    import probes

    with bar("random T") as progress:
        found = probes.check(
            base,
            tuned,
            texts=own,
            at_most=at_most,
            draws=draws,
            longest=longest,
            seed=seed,
            keep=keep,
            compute=Compute(device, dtype, progress=progress),
        )
    if math.isnan(found.kl):
        say("T = 0: nothing changed")
        return STATUS[found.verdict]
    random = sorted(found.random)
    rows = [
        ["tuned", found.kl, interval(found.lo, found.hi), found.texts],
        [f"{len(random)} random T", random[len(random) // 2], interval(random[0], random[-1]), found.texts],
    ]
    columns = ["", "KL, nats per token", "95 % over texts; range of random T", "texts"]
    print_table("KL(base ‖ tuned) on general texts, and that of random T, at the median", columns, rows)
    say(f"{found.standing}: p = {number(found.p)}, two-sided, by rank ({_rank(found.kl, random)})")
    if at_most is not None:
        say(f"at most {at_most:g} nats per token: {found.verdict}")
    print_notes(found.notes)
    return STATUS[found.verdict]


def _rank(value: float, random: list[float]) -> str:
    return f"{sum(drawn >= value for drawn in random)} of {len(random)} random T change predictions as much or more"


def _read(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return [text.strip("\n") for text in path.read_text(encoding="utf-8").split("\n\n") if text.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {getattr(error, 'strerror', None) or error}") from None
