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
        Form, typer.Option(help="Both models together, or an SAE of their difference Δh.")
    ] = Form.crosscoder,
    dictionary: Annotated[
        Path | None,
        typer.Option(help="A public dictionary of the base (SAELens, dictionary-learning); nothing is trained then."),
    ] = None,
    site: Annotated[
        SiteName | None, typer.Option(help="Where states are read.", show_default="the dictionary's, else resid_post")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(min=0, help="The layer, from 0.", show_default="the dictionary's, else the middle one")
    ] = None,
    latents: Annotated[int, typer.Option(min=2, help="Latents of a dictionary that is trained.")] = 1024,
    k: Annotated[
        int | None,
        typer.Option(min=1, help="Latents that fire at a token, on average.", show_default="16; 4 with --form delta"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, of 512 tokens each.")] = 450,
    seeds: Annotated[
        int, typer.Option(min=1, help="Trainings of the pair and of each null; with 1 no stability and no false rate.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the first training and of all draws.")] = 0,
    texts: Annotated[
        list[Path] | None, typer.Option(help="Texts to read in place of the run's prompts; repeatable.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Tokens of the texts that are read, at most.")] = 60_000,
    metric: Metric = None,
    effects: Annotated[int, typer.Option(min=0, help="Latents that are moved one by one; 0 for none.")] = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Which sparse features are new, lost or shifted, beyond base against base? And what do they cause?

    The same command resumes one that was killed.

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
    wrote(probes.report(run), "the report: the features with their texts, words and effects")


def _print(found: pd.DataFrame, dictionaries: pd.DataFrame, words: pd.DataFrame) -> None:
    shown = ["tuned", "side", "seed", "fvu_base", "fvu_tuned", "fvu_delta", "l0", "dead", "stability", "called"]
    print_table(
        "Dictionaries; `called` is the share of latents called new, lost or shifted: of a null, falsely",
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
            print_table(f"What moved most in {name}", columns, lines, digits=3)
