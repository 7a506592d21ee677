"""The tables of one pair's attribution, from the models and what a run has measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from probes.attribution.attributor import Attributor
from probes.attribution.dla import dla_completeness
from probes.attribution.elsewhere import helped
from probes.attribution.finding import Finding
from probes.attribution.floors import floors_of, floors_read
from probes.attribution.known import Known
from probes.attribution.scores import component_scores
from probes.capture.loading import Pairs
from probes.capture.pair import Pair
from probes.discovery.finding import finding_of, is_discovered
from probes.discovery.found import source_of
from probes.store.prompts import prompts_of
from probes.store.run import Run
from probes.suite import Suite
from tv.prompts.encoding import Encoded, encode
from tv.runtime.compute import Compute


def effects_of(
    models: Pairs, run: Run, name: str, compute: Compute, known: Known | None = None
) -> dict[str, pd.DataFrame]:
    """Every table of one pair's attribution, from the models, the run's measurements and what is `known` already."""
    suite, pair = models.suite, models.pair(name)
    assert suite.attribute is not None
    encoded = encode(prompts_of(run), pair.tokenizer, pair.architecture.context)
    finding = _finding(run, suite, name, pair, encoded)
    work = Attributor(
        pair,
        encoded if finding is None else [item for item in encoded if item.prompt.id in finding.places],
        suite.attribute,
        batch_size=suite.batch_size,
        seed=suite.seed,
        floors=floors_of(run, suite.attribute.metric),
        known=known or Known(),
        finding=finding,
    )
    if finding is not None:
        work.work = replace(work.work, floors=floors_read(pair, work.work.metric, work.work.batches))
    every = suite.attribute.curves and suite.attribute.curve_rankings == "all"
    scores = component_scores(run, name) if every else {}
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


def _finding(run: Run, suite: Suite, name: str, pair: Pair, encoded: Sequence[Encoded]) -> Finding | None:
    """What the metric of effects reads, where it is a finding: of this run, or of an earlier one."""
    wanted = suite.attribute
    if wanted is None or not is_discovered(wanted.metric):
        return None
    source = run if wanted.discovered is None else source_of(wanted.discovered)
    if source is run:
        texts = encoded
    else:
        texts = encode(prompts_of(source), pair.tokenizer, pair.architecture.context)
    size = suite.batch_size
    return finding_of(source, wanted.metric, name, pair, texts=texts, encoded=encoded, batch_size=size)
