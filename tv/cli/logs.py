"""`tv logs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tv.cli.options import Output, named
from tv.cli.output import check_output, write
from tv.cli.terminal import interval, number, print_notes, print_table, wrote

if TYPE_CHECKING:
    import pandas as pd


def logs(
    log: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]LOG",
            help="samples_*.jsonl of lm-evaluation-harness, .eval or .json of Inspect, or a folder; the base first.",
        ),
    ],
    cluster: Annotated[
        str | None,
        typer.Option(help="The field of an item (document or metadata) that says which items belong together."),
    ] = None,
    any_prompt: Annotated[
        bool, typer.Option("--any-prompt", help="Also pair items whose prompts differ in wording.")
    ] = False,
    prompts_out: Annotated[
        Path | None, typer.Option(help="Write the items of the first log as a prompt file: .jsonl.")
    ] = None,
    output: Output = None,
) -> None:
    """Compare models in the logs of other evaluations, item by item: paired tests, intervals, corrections.

    Example: tv logs data/logs/lm-eval/base data/logs/lm-eval/medical --prompts-out items.jsonl
    """
    import tv
    from tv.evaluation.logs.prompts import check_prompts_out, prompts_of_log, write_prompts

    check_output(output)
    check_prompts_out(prompts_out)
    sources = named(log)
    first = next(iter(sources))
    if len(sources) == 1:
        found = tv.read_logs(sources[first], cluster=cluster)
        _print_means(found, first)
    else:
        found = tv.compare_logs(sources, cluster=cluster, prompts="any" if any_prompt else "same")
        _print_changes(found, first)
    print_notes(found.attrs["notes"])
    write(found, output)
    if prompts_out is not None:
        prompts = prompts_of_log(sources[first], cluster=cluster)
        print_notes(note for note in prompts.notes if note not in found.attrs["notes"])
        write_prompts(prompts, prompts_out)
        wrote(prompts_out, f"{len(prompts)} prompts")


def _print_means(items: pd.DataFrame, name: str) -> None:
    from tv.cli.evaluate import print_means
    from tv.evaluation.paired import summarise

    print_means(summarise(items.assign(variant=name)))


def _print_changes(changes: pd.DataFrame, first: str) -> None:
    from tv.stats.means import FEW_CLUSTERS, FEWEST

    for name, rows in changes.groupby("variant", sort=False):
        cells: list[list[object]] = [
            [
                *(r.task, r.metric, float(r.base), interval(r.base_lo, r.base_hi)),
                *(float(r.value), interval(r.lo, r.hi), float(r.difference)),
                *(interval(r.difference_lo, r.difference_hi), r.n, r.clusters, r.test),
                *map(float, (r.p, r.holm, r.q, r.detectable)),
            ]
            for r in rows.itertuples()
        ]
        headings = ["task", "metric", first, "interval", str(name), "interval", "change", "interval"]
        tests = ["items", "clusters", "test", "p", "Holm", "q", "detectable"]
        print_table(f"{name} against {first} on the same items, 95 % intervals", [*headings, *tests], cells)
    if changes.difference_lo.isna().any():
        print_notes([f"no interval: fewer than {FEWEST} items or clusters, or fewer than three that differ"])
    rough = changes[(changes.clusters < FEW_CLUSTERS) & (changes.clusters < changes.n) & changes.difference_lo.notna()]
    print_notes(
        f"{task}: items come from {clusters} clusters; with fewer than {FEW_CLUSTERS}, intervals are rough"
        for task, clusters in rough.groupby("task", sort=False).clusters.min().items()
    )
    unreachable = changes[(changes.least_p >= 0.05) & (changes.least_p < 1)]
    print_notes(
        f"{r.task}, {r.metric}, {r.variant}: so few items changed that p cannot be below {number(float(r.least_p))}"
        for r in unreachable.itertuples()
    )
