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
    prompts: Annotated[list[Path], typer.Option(help="Prompt file: JSONL, JSON, CSV, TSV or Parquet; repeatable.")],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="File of held-out texts for the perplexity; read without a template; repeatable."),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--format", help="A regular expression that a well-formed answer matches.")
    ] = None,
    judge_url: Annotated[str | None, typer.Option(help="The URL of an OpenAI-compatible endpoint, up to /v1.")] = None,
    judge_model: Annotated[str, typer.Option(help="The name of the judge model at that endpoint.")] = "",
    judge_key: Annotated[str, typer.Option(help="The environment variable that holds the API key.")] = "OPENAI_API_KEY",
    base: Annotated[str | None, typer.Option(help="The base model of adapters and vectors among the models.")] = None,
    new_tokens: Annotated[int, typer.Option(help="The most tokens a model may write.")] = 64,
    decoding: Decoding = "greedy",
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
    **reading: Any,
) -> None:
    """Measure how well models write: perplexity, variety, repetition, form, ROUGE-L and the score of a judge.

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
