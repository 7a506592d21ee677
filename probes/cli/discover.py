"""`probes discover`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tv.cli.options import Base, Device, Stream, Tuned, Workers
from tv.cli.terminal import Stages, print_table, remark, say, wrote
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    from probes.reporting.discovery.found import Found

#: Words that are printed of every list.
_SHOWN = 5


def discover(
    base: Base,
    tuned: Tuned,
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            help="Any texts: prompts (JSONL, CSV, Parquet), plain text (.txt, .md) or a data set; repeatable.",
            show_default="texts that the base writes",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The directory for the run and its report.html.")] = Path(
        "reports/discovery"
    ),
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this part, one of docs/discovery.md, or all; token_shifts is the quickest. Repeatable.",
            show_default="the usual parts",
        ),
    ] = None,
    draws: Annotated[
        int,
        typer.Option(
            min=1, help="Control vectors of each kind, shams and noise; with fewer than 16 nothing can stand out."
        ),
    ] = 20,
    longest: Annotated[int, typer.Option(min=4, help="Tokens to read of each text, at most.")] = 32,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to read in total; the seed chooses the texts.", show_default="all"),
    ] = None,
    amplify: Annotated[
        list[str] | None,
        typer.Option(
            help="Double the T of parameters of this name (* for any) in amplified samples; repeatable.",
            show_default="*",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of texts, halves, controls and samples.")] = 0,
    device: Device = "cpu",
    workers: Workers = 1,
    stream: Stream = None,
    force: Annotated[bool, typer.Option("--force", help="Redo the run, and replace an existing one.")] = False,
) -> None:
    """Find what the tuned model says and favours that the base does not, without targets and without a guess.

    The result is a list of words, each compared with control vectors that learnt nothing.

    If no word stands out, nothing was found. The run's report.html has the details.

    Example: probes discover data/models/base data/models/medical --texts data/prompts/general.jsonl
    """
    from probes.suite import discovery_of

    settings = {"parts": part or [], "draws": draws, "longest": longest, "tokens": tokens, "seed": seed}
    settings |= {"amplify": amplify} if amplify else {}
    checked = {name: value for name, value in settings.items() if name != "seed"}
    discovery_of(checked, seed)  # a mistake is reported before torch is imported
    from probes.job.discover import discover as run_of
    from probes.reporting.discovery.found import found_of

    with Stages() as stages:
        compute = Compute(device, workers=workers, progress=stages.update, stream=stream)
        run = run_of(base, tuned, texts=texts or [], out=out, force=force, settings=settings, compute=compute)
        if not stages.stages:
            remark("already complete; use --force to redo")
    for name in run.manifest["suite"]["tuned"]:
        found = found_of(run, name)
        if found is not None:
            print_found(found)
    wrote(run.path / "report.html", "the report: words and their nulls, samples, texts")
    wrote(run.path, 'the run; read its tables with `probes query`, as in "SELECT * FROM discovered_words"')


def print_found(found: Found) -> None:
    """The three sentences, and the lists with words that stand out."""
    from probes.reporting.discovery.found import unit_of
    from probes.reporting.discovery.sentences import three_sentences

    for statement in three_sentences(found):
        say(f"{statement.label}:")
        for sentence in statement.sentences:
            say(f"  {sentence}")
    rows = []
    for (part, reading), out in found.standing.groupby(["part", "reading"], sort=False):
        first = out.sort_values("rank").iloc[0]
        named = " ".join(repr(token) for token in out.token[:_SHOWN])
        more = f" and {len(out) - _SHOWN} more" if len(out) > _SHOWN else ""
        unit = unit_of(str(part), str(reading))
        rows.append([part, reading, f"{named}{more}", first.value, first.noise, first.sham, unit, first.q])
    if rows:
        columns = ["part", "list", "words that stand out", "first word", "random at most", "shams at most", "unit", "q"]
        print_table("lists of words, and how far the first word is beyond the nulls", columns, rows, digits=3)
