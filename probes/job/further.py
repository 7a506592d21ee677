"""Further work on a finished run that needs its models: they are opened again and proved the same, tables are added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from probes.capture.loading import Pairs, require_streamable
from probes.errors import RunError
from probes.job.identity import checkpoints_of
from probes.job.pairs import open_pairs
from probes.store.prompts import prompts_of
from probes.store.run import Run
from probes.suite import Suite, load_suite
from tv.errors import choices
from tv.prompts.encoding import Encoded, encode
from tv.runtime.compute import Compute

Tables = Mapping[str, pd.DataFrame]


def reopened(run: Run, compute: Compute, suite: Suite | None = None) -> Pairs:
    """The models of a run, none loaded yet.

    Args:
        run: A finished run.
        compute: Where models compute.
        suite: The run's, where it is changed for this work.

    Raises:
        RunError: A source no longer holds the weights that the run's tables are of, each model reads its own tokens,
            or the run cannot be streamed.
    """
    models = Pairs(suite or load_suite(run.manifest["suite"]), compute.silent())
    if models.suite.tokenizer == "own":
        raise RunError(f"{run.path}: the models read different tokens (tokenizer: own): states cannot be paired")
    require_streamable(models)
    for name, held in checkpoints_of(open_pairs(models)).items():
        read = run.manifest["checkpoints"][name]["fingerprint"]
        if held["fingerprint"]["content"] != read["content"]:
            raise RunError(
                f"{run.path}: {held['source']} ({name}) no longer holds the weights that the run read: it was "
                "changed, or the run read a live model; run the suite again"
            )
    return models


def encoded_of(run: Run, models: Pairs, name: str) -> list[Encoded]:
    """The prompts of a run in the tokens of its base; loads the pair of this tuned model."""
    pair = models.pair(name)
    return encode(prompts_of(run), pair.tokenizer, pair.architecture.context)


def named(run: Run, tuned: str | Sequence[str] | None) -> list[str]:
    """The tuned models that are asked for, all without a choice. Raises RunError for one that the run lacks."""
    there = list(run.manifest["suite"]["tuned"])
    asked = [tuned] if isinstance(tuned, str) else list(tuned or ())
    for name in asked:
        if name not in there:
            raise RunError(f"{run.path}: no tuned model {name!r}{choices(name, there)}")
    return asked or there


def add(run: Run, by_name: Mapping[str, Tables], replacing: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Add tables to a run, the rows of every tuned model together.

    Rows of tuned models that are not in `by_name` stay as they are. In a table of `replacing`, so do the rows that
    have other values in these columns: {"effects": {"method": "direction"}} replaces the rows of one method.
    """
    for table in dict.fromkeys(name for tables in by_name.values() for name in tables):
        new = pd.concat([t[table].assign(tuned=name) for name, t in by_name.items() if table in t], ignore_index=True)
        if table in run.tables:
            old = run[table]
            going = old.tuned.isin(list(by_name))
            for column, value in (replacing or {}).get(table, {}).items():
                going &= old[column] == value
            new = pd.concat([old[~going], new], ignore_index=True)
        run.add(table, new)
