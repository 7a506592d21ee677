"""`tv evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tv.cli.options import Device, Dtype, Output, named
from tv.cli.output import check_output, write
from tv.cli.prompt_options import chat_of, converses
from tv.cli.terminal import bar, interval, number, print_notes, print_table, remark

if TYPE_CHECKING:
    import pandas as pd

Tasks = Annotated[
    list[str],
    typer.Option(
        "--task",
        help="A YAML file, FORMAT=FILE (medqa, pubmedqa, medmcqa, mmlu, gsm8k, ifeval), or a task name of "
        "lm-evaluation-harness; repeatable.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Read only the first items of each task.", show_default="all")]
BatchSize = Annotated[int, typer.Option(help="Prompts in one forward pass.")]
Decoding = Annotated[
    Literal["greedy", "checkpoint"],
    typer.Option(
        help="greedy: every model writes its most likely token; checkpoint: each follows its own generation settings."
    ),
]


@converses
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL", help="Checkpoints, adapters or vectors.")],
    task: Tasks,
    base: Annotated[str | None, typer.Option(help="The base model of adapters and vectors among the models.")] = None,
    limit: Limit = None,
    shots: Annotated[
        int | None,
        typer.Option(help="Examples before each question, if the task does not say how many.", show_default="0"),
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="The most tokens a model may write.", show_default="the task's")
    ] = None,
    decoding: Decoding = "greedy",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
    **talk: Any,
) -> None:
    """Score models on tasks, item by item, and compare each with the first on the same items.

    Example: tv evaluate data/models/base data/models/medical --task data/tasks/medical_cloze.yaml -o items.parquet
    """
    import tv
    from tv.evaluation.paired import compare, summarise

    check_output(output)
    sources = named(models)
    chat = chat_of(**talk)
    with bar("evaluate") as progress:
        items = tv.evaluate(
            sources,
            task,
            base=base,
            limit=limit,
            shots=shots,
            new_tokens=new_tokens,
            chat=chat,
            decoding=decoding,
            batch_size=batch_size,
            compute=tv.Compute(device, dtype, progress=progress),
        )
    tell_decoding(items)
    print_means(summarise(items))
    first = next(iter(sources))
    if len(sources) > 1:
        print_differences(compare(items, first), first)
    print_notes(items.attrs["notes"])
    write(items, output)


def tell_decoding(items: pd.DataFrame) -> None:
    """By what rule each model wrote, as a remark."""
    for name, rule in items.attrs["decoding"].items():
        remark(f"{name} {rule}")


def print_means(means: pd.DataFrame) -> None:
    """The table of `summarise`."""
    rows: list[list[object]] = [
        [r.task, r.metric, r.variant, float(r.value), interval(r.lo, r.hi), r.n, r.clusters] for r in means.itertuples()
    ]
    headings = ["task", "metric", "model", "mean", "interval", "items", "clusters"]
    print_table("mean over items, 95 % interval", headings, rows)
    print_notes(_few(means))


def print_differences(differences: pd.DataFrame, reference: str) -> None:
    """The table of `compare`."""
    rows: list[list[object]] = [
        [r.task, r.metric, r.variant, float(r.difference), interval(r.lo, r.hi), *map(float, (r.p, r.least_p, r.q))]
        for r in differences.itertuples()
    ]
    title = f"difference from {reference} on the same items"
    print_table(title, ["task", "metric", "model", "difference", "interval", "p", "least p", "q"], rows)
    unreachable = differences[(differences.least_p >= 0.05) & (differences.least_p < 1)]
    print_notes(
        f"{r.task}, {r.metric}, {r.variant}: so few items changed that p cannot be below {number(float(r.least_p))}"
        for r in unreachable.itertuples()
    )


def _few(means: pd.DataFrame) -> Iterator[str]:
    """What few items or clusters mean for the intervals of `summarise`."""
    from tv.stats.means import FEW_CLUSTERS, FEWEST

    if means.lo.isna().any():
        yield f"no interval: fewer than {FEWEST} items or clusters, or fewer than three that differ"
    rough = means[(means.clusters < FEW_CLUSTERS) & (means.clusters < means.n) & means.lo.notna()]
    for task, clusters in rough.groupby("task", sort=False).clusters.min().items():
        yield f"{task}: items come from {clusters} clusters; with fewer than {FEW_CLUSTERS}, intervals are rough"
