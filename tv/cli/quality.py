"""`tv quality`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tv.cli.evaluate import BatchSize, Decoding, print_differences, print_means, tell_decoding
from tv.cli.options import Device, Dtype, Output, named
from tv.cli.output import check_output, write
from tv.cli.prompt_options import prompt_sets, reads_prompts
from tv.cli.terminal import bar, number, print_notes, say

if TYPE_CHECKING:
    import pandas as pd


@reads_prompts
def quality(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL", help="Checkpoints, adapters or vectors.")],
    prompts: Annotated[
        list[Path], typer.Option(help="Files of prompts: JSONL, JSON, CSV, TSV or Parquet; repeatable.")
    ],
    text: Annotated[
        list[Path] | None, typer.Option(help="Likewise, of held-out text for the perplexity: read as it is.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--format", help="A regular expression of a well-formed answer.")
    ] = None,
    judge_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint, up to /v1.")] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's name there.")] = "",
    judge_key: Annotated[str, typer.Option(help="The environment variable with its key.")] = "OPENAI_API_KEY",
    base: Annotated[str | None, typer.Option(help="The base of the adapters and vectors among the models.")] = None,
    new_tokens: Annotated[int, typer.Option(help="How many a model may write.")] = 64,
    decoding: Decoding = "greedy",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
    **reading: Any,
) -> None:
    """How well models write: perplexity, variety, repetition, form, ROUGE-L and a judge's score, prompt by prompt.

    Example: tv quality data/models/base data/models/instruct --prompts data/prompts/instruct.jsonl
    --format 'The answer is'
    """
    import tv
    from tv.evaluation.judge import Judge
    from tv.evaluation.paired import compare, summarise

    check_output(output)
    judge = Judge(judge_url, judge_model, judge_key) if judge_url is not None else None
    sources, sets = named(models), prompt_sets(prompts, **reading)
    with bar("quality") as progress:
        items = tv.quality(
            sources,
            sets,
            texts=text or (),
            pattern=pattern,
            judge=judge,
            base=base,
            new_tokens=new_tokens,
            decoding=decoding,
            batch_size=batch_size,
            compute=tv.Compute(device, dtype, progress=progress),
        )
    tell_decoding(items)
    print_means(summarise(items))
    _print_whole(items)
    first = next(iter(sources))
    if len(sources) > 1:
        print_differences(compare(items, first), first)
    print_notes(items.attrs.get("notes", ()))
    write(items, output)


def _print_whole(items: pd.DataFrame) -> None:
    """Print the measures of all responses together."""
    import math

    from tv.evaluation.generation import distinct

    for name, rows in items.groupby("variant", sort=False):
        texts = rows[rows.metric == "words"].response.tolist()
        words = f"distinct-1 {number(distinct(texts, 1))}, distinct-2 {number(distinct(texts, 2))} over all responses"
        losses = rows[rows.metric == "nll"].value
        if len(losses):
            words += f"; perplexity {number(math.exp(losses.mean()))} (e to the mean loss of the texts)"
        say(f"{name}: {words}")
