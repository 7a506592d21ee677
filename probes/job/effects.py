"""The tables of one pair's attribution, from the models and what a run has measured."""

from __future__ import annotations

from functools import partial

import pandas as pd

from probes.attribution.attributor import Attributor
from probes.attribution.dla import dla_completeness
from probes.attribution.elsewhere import helped
from probes.attribution.floors import floors_of
from probes.attribution.known import Known
from probes.attribution.scores import component_scores
from probes.capture.loading import Pairs
from probes.store.run import Run
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
from tv.runtime.compute import Compute


def effects_of(
    models: Pairs, run: Run, name: str, compute: Compute, known: Known | None = None
) -> dict[str, pd.DataFrame]:
    """Every table of one pair's attribution, from the models, the run's measurements and what is `known` already."""
    suite, pair = models.suite, models.pair(name)
    assert suite.attribute is not None
    encoded = encode(prompts_of(run), pair.tokenizer, pair.architecture.context)
    floors = floors_of(run, suite.attribute.metric)
    work = Attributor(
        pair,
        encoded,
        suite.attribute,
        batch_size=suite.batch_size,
        seed=suite.seed,
        floors=floors,
        known=known or Known(),
    )
    scores = component_scores(run, name) if suite.attribute.curves else {}
    with helped(work.work, models, name) as team:
        tables = work.tables(
            bootstrap=suite.bootstrap,
            bases=models.bases,
            scores=scores,
            team=team,
            progress=partial(compute.tell, f"attribute {name}"),
        )
    sums = [check.row("logit_diff") for check in dla_completeness(pair, run, name, encoded)]
    tables["checks"] = pd.concat([tables["checks"], pd.DataFrame(sums)], ignore_index=True)
    return {table: rows.assign(tuned=name) for table, rows in tables.items()}


def prompts_of(run: Run) -> list[Prompt]:
    """The prompts that a run was made with, from its table `prompts`."""
    rows = run.arrow("prompts").drop_columns(["answer_pos"]).rename_columns({"prompt_id": "id"}).to_pylist()
    return [Prompt(**row) for row in rows]
