"""Reading fine-tunes for the study: one run over all of them, and tables beside the nulls."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from studies.real_models import reading, tables
from studies.real_models.answers import activations, shown, weights
from studies.real_models.study import Study
from studies.real_models.training import train
from tv.errors import InputError


@pytest.mark.thorough  # thirty CPU seconds
def test_reads_every_fine_tune_beside_its_nulls(study: Study) -> None:
    step = reading.one_step("demo")
    train(step, study.base("demo"), study.texts, study.tuned(step), held_out=2)
    for stage in reading.stages(study)[1:]:
        stage.work()
    found = {path.stem: pd.read_csv(path) for path in study.results("read-demo-0").glob("*.csv")}
    assert {*found["weights"].tuned} == {"medical-full", "math-full", reading.ONE_STEP, reading.RANDOM}

    of = found["weights"].set_index(["tuned", "layer", "module"])
    np.testing.assert_allclose(of.delta_norm["random"], of.delta_norm["medical-full"], rtol=1e-3)
    assert (of.relative_norm["one-step"] < 0.1 * of.relative_norm["medical-full"]).all()

    random = weights.at_epsilon(found["alignment"]).query("kind == 'random' and side == 'left'")
    assert (random.ssa - random.ssa_null).abs().max() < 0.02  # a T without direction is its own null
    assert "medical-full" in shown.markdown(found["gates"])
    said = activations.gates(found)
    assert [*said["texts of"]].count("own domain") == 1
    assert len(weights.similarity(found)) == len({"full", reading.ONE_STEP, reading.RANDOM})


def test_stages_that_are_not_done_are_named(study: Study) -> None:
    missing = tables.collect(study, study.work / "tables")
    assert {"null-demo", "read-demo-0", "cause-demo-medical", "find-demo-math"} <= {*missing}
    assert not any(name.startswith("tune-demo-m") for name in missing)
    found = tables.load(study.work / "tables")
    weights = study.base("demo") / "model.safetensors"
    digests = found["digests"].set_index("file").sha256
    assert digests["demo/model.safetensors"] == sha256(weights.read_bytes()).hexdigest()
    assert "demo-math-full-0/model.safetensors" in digests
    steps = found["training"]
    assert steps.tune.tolist() == ["demo-medical-full-0", "demo-math-full-0"]


def test_parts_of_a_study_are_joined(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pd.DataFrame({"model": [name], "value": [1]}).to_csv(tmp_path / name / "weights.csv", index=False)
    (found,) = tables.load(tmp_path).values()
    assert found.model.tolist() == ["one", "two"] and found.index.tolist() == [0, 1]


def test_parts_that_hold_the_same_stages_are_not_counted_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pd.DataFrame({"stage": ["read-one-0"]}).to_csv(tmp_path / name / "stages.csv", index=False)
    with pytest.raises(InputError, match="read-one-0 stands in two"):
        tables.load(tmp_path)
