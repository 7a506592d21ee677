"""`probes features`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from probes.cli.options import RunPath
from probes.cli.places import Metric, SiteName, Tuned
from tv.cli.options import Device, Dtype
from tv.cli.terminal import Stages, print_table, say, wrote
from tv.runtime.compute import Compute

if TYPE_CHECKING:
    import pandas as pd

#: Latents that are printed.
_SHOWN = 10


class Form(StrEnum):
    """How a dictionary reads both models."""

    crosscoder = "crosscoder"
    delta = "delta"


def features(
    path: RunPath,
    tuned: Tuned = None,
    form: Annotated[
        Form, typer.Option(help="crosscoder: a dictionary of both models; delta: an SAE of their difference Δh.")
    ] = Form.crosscoder,
    dictionary: Annotated[
        Path | None,
        typer.Option(help="Use a public dictionary of the base (SAELens, dictionary-learning) and train none."),
    ] = None,
    site: Annotated[
        SiteName | None, typer.Option(help="The site to read.", show_default="the dictionary's, else resid_post")
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(min=0, help="The layer, counted from 0.", show_default="the dictionary's, else the middle one"),
    ] = None,
    latents: Annotated[int, typer.Option(min=2, help="Latents of a trained dictionary.")] = 1024,
    k: Annotated[
        int | None,
        typer.Option(min=1, help="Average number of active latents per token.", show_default="16; 4 with --form delta"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of 512 tokens each.")] = 450,
    seeds: Annotated[
        int,
        typer.Option(min=1, help="Training runs of the pair and of each null; 1 gives no stability and no false rate."),
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first training run and of all random draws.")] = 0,
    texts: Annotated[
        list[Path] | None, typer.Option(help="Texts to read; repeatable.", show_default="the run's prompts")
    ] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Tokens to read, at most.")] = 60_000,
    metric: Metric = None,
    effects: Annotated[int, typer.Option(min=0, help="Latents to move one at a time; 0 for none.")] = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Find sparse features that are new, lost or shifted beyond base-against-base, and what they cause.

    Rerun the same command to resume.

    Example: probes features reports/demo --tuned medical --texts data/prompts/general.jsonl
    """
    import probes

    run = probes.load(path)
    with Stages() as stages:
        found = probes.features(
            run,
            tuned=tuned,
            form=form.value,
            dictionary=dictionary,
            site=site,
            layer=layer,
            latents=latents,
            k=k,
            steps=steps,
            seeds=seeds,
            seed=seed,
            texts=texts or [],
            tokens=tokens,
            metric=metric,
            effects=effects,
            compute=Compute(device, dtype, progress=stages.update),
        )
    _print(found, run["dictionaries"], run["feature_words"])
    wrote(probes.report(run), "the report: features with their texts, words and effects")


def _print(found: pd.DataFrame, dictionaries: pd.DataFrame, words: pd.DataFrame) -> None:
    shown = ["tuned", "side", "seed", "fvu_base", "fvu_tuned", "fvu_delta", "l0", "dead", "stability", "called"]
    print_table(
        "dictionaries; `called` is the share of latents called new, lost or shifted, which is false for a null",
        shown,
        dictionaries[shown].to_numpy().tolist(),
        digits=3,
    )
    for name, rows in found.groupby("tuned", sort=False):
        counts = rows["class"].value_counts()
        say(f"{name}: " + ", ".join(f"{counts.get(c, 0)} {c}" for c in ("new", "lost", "shifted", "shared", "dead")))
        moved = rows[rows["class"].isin(["new", "lost", "shifted"])].sort_values("rank").head(_SHOWN)
        own = words[(words.tuned == name) & (words.row == "tuned")].sort_values("word_rank")
        lines = [
            [
                row.feature,
                row.kind,
                row.change,
                row.change_null,
                row.energy,
                " ".join(repr(token) for token in own[own.feature == row.feature].token.head(4)),
            ]
            for row in moved.rename(columns={"class": "kind"}).itertuples()
        ]
        if lines:
            columns = ["feature", "class", "change", "nulls at most", "energy", "words"]
            print_table(f"largest changes in {name}", columns, lines, digits=3)
