"""What a discovery finds in each fine-tune that nobody told it to look for."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path

import pandas as pd

import probes
from probes.discovery.discover import FEWEST
from studies.real_models.models import SOURCES
from studies.real_models.reading import prompt_files, write
from studies.real_models.stage import Stage
from studies.real_models.study import Study, deep
from studies.real_models.training import Training

#: What is read of a text, and how many texts each null reads, so that twenty nulls stay affordable; in a short study.
LONGEST, NULL_TEXTS, FEWER_TEXTS, DRAWS = 24, 16, 8, 20
#: Forwards over the texts of a null that a discovery takes, with shams that need gradients; and over all the rest.
NULLS, REST = 3 * DRAWS + DRAWS, 53
#: Words of every part that are kept.
WORDS = 10


def stages(study: Study) -> list[Stage]:
    """A discovery in each of the fine-tunes that are looked into further."""
    return [_finding(study, one) for one in deep(study.size)]


def _finding(study: Study, one: Training) -> Stage:
    stage, source = f"find-{one.model}-{one.domain}", SOURCES[one.model]
    cpu = 40 + (NULLS * _null_texts(study) + REST * NULL_TEXTS) * LONGEST * source.everywhere
    work = partial(_find, study, one, study.results(stage))
    run = study.work / "runs" / stage
    return Stage(stage, work, cpu, source.memory(3, 10), 2, study.results(stage), (f"tune-{one.name}",), (run,))


def _find(study: Study, one: Training, out: Path) -> None:
    """On texts of every domain, so that what is found need not be what was asked."""
    names = study.size.domains[one.model]
    n = max(study.size.prompts, math.ceil(FEWEST / len(names)))
    texts = [one_set["file"] for one_set in prompt_files(study, names, n)]
    settings = {"draws": DRAWS, "null_texts": _null_texts(study), "longest": LONGEST, "seed": 0}
    cpu, wall = time.process_time(), time.monotonic()
    run = probes.discover(
        study.base(one.model), study.tuned(one), texts=texts, out=study.work / "runs" / out.name, settings=settings
    )
    words = run["discovered_words"].drop(columns="tuned")
    lists = words.groupby(["part", "reading"], observed=True, sort=False)
    counts = lists.agg(words=("token", "size"), stand_out=("stands_out", "sum"))
    tables = {"words": lists.head(WORDS), "searches": counts.reset_index()}
    if "claims" in run.tables:
        tables["claims"] = run["claims"].drop(columns="tuned")
    tables["discoveries"] = pd.DataFrame({"cpu": [time.process_time() - cpu], "wall": time.monotonic() - wall})
    write(out, tables, model=one.model, seed=one.seed, of=one.domain)


def _null_texts(study: Study) -> int:
    return FEWER_TEXTS if study.size.short else NULL_TEXTS
