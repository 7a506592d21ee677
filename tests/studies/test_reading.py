"""Reading a pair for the study."""

from __future__ import annotations

import pandas as pd

from studies.real_models import reading
from studies.real_models.study import Study
from studies.real_models.training import train


def test_reads_every_fine_tune_beside_its_nulls(study: Study) -> None:
    step = reading.one_step("demo")
    train(step, study.base("demo"), study.texts, study.tuned(step), held_out=2)
    for stage in reading.stages(study)[1:]:
        stage.work()
    tables = {path.stem: pd.read_csv(path) for path in study.results("read-demo-0").glob("*.csv")}
    assert {*tables["weights"].tuned} == {"medical-full", "math-full", "one-step", "random"}
    for t in tables:
        print(t, len(tables[t]))
        print(tables[t].head(3).to_string())
