"""`probes discover`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tv.cli.options import Base, Device, Tuned
from tv.cli.terminal import Stages, print_table, remark, say, wrote
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    import pandas as pd

#: Words that are printed of every reading.
_SHOWN = 8


def discover(
    base: Base,
    tuned: Tuned,
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="Prompts, plain text or a data set; repeatable. Without it the base writes texts itself."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("reports/discovery"),
    part: Annotated[
        list[str] | None,
        typer.Option(help="token_shifts, difference_lens, spoken, … (docs/discovery.md); repeatable. [all]"),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of every control.")] = 20,
    longest: Annotated[int, typer.Option(min=4, help="Tokens of a text that are read.")] = 32,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Of all texts that are read; which, the seed draws. [every text]")
    ] = None,
    amplify: Annotated[
        list[str] | None,
        typer.Option(help="What is written with twice the T of parameters of this name, * any; repeatable. [*]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of texts, halves, controls and samples.")] = 0,
    device: Device = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace the run that is there.")] = False,
) -> None:
    """What does the tuned model say and favour that the base does not? No target is needed, and no guess.

    Example: probes discover data/models/base data/models/medical --texts data/prompts/general.jsonl
    """
    from probes.job.discover import discover as run_of

    settings = {"parts": part or [], "draws": draws, "longest": longest, "tokens": tokens, "seed": seed}
    settings |= {"amplify": amplify} if amplify else {}
    with Stages() as stages:
        compute = Compute(device, progress=stages.update)
        run = run_of(base, tuned, texts=texts or [], out=out, force=force, settings=settings, compute=compute)
        if not stages.stages:
            remark("this run was there, finished; --force makes it again")
    _print_words(run["discovered_words"])
    wrote(run.path, "the run; its tables are read with `probes query`")


def _print_words(words: pd.DataFrame) -> None:
    rows = []
    for (part, reading), own in words.groupby(["part", "reading"], sort=False):
        out = own[own.stands_out]
        named = " ".join(repr(token) for token in out.token[:_SHOWN])
        more = f" and {len(out) - _SHOWN} more" if len(out) > _SHOWN else ""
        first = own.iloc[0]
        rows.append([part, reading, f"{named}{more}" or "–", first.value, max(first.noise, first.sham), first.q])
    print_table("", ["part", "reading", "words that stand out", "first", "of the nulls", "q"], rows, digits=3)
    if not words.stands_out.any():
        say("no word stands out of what random and sham vectors do: nothing was found, or the texts are too few")
