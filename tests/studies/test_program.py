"""The program run in several ways, for the study."""

from __future__ import annotations

import pandas as pd
import pytest

from studies.real_models import program
from studies.real_models.study import Study


@pytest.mark.thorough  # three processes that import everything
def test_a_killed_run_is_resumed_and_its_tables_are_those_of_the_plain_one(study: Study) -> None:
    for way in ("plain", "killed and resumed"):
        program._stage(study, way).work()
    plain, killed = (
        pd.read_csv(study.results(program._name(way, "demo")) / "program.csv").iloc[0]
        for way in ("plain", "killed and resumed")
    )
    assert all(way.cpu > way.cpu_run > 0 and way.cpu_estimate > 0 for way in (plain, killed))
    apart = pd.read_csv(study.results("program-demo-killed-and-resumed") / "program_tables.csv")
    assert {"gates", "contributions", "behaviour"} <= {*apart.table}
    assert (apart.largest_difference == 0).all() and (apart.others_unequal == 0).all()
