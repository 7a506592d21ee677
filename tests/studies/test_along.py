"""Paths, orders, the trajectory and LoRA from T, for the study."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from studies.real_models import along
from studies.real_models.stage import Stage
from studies.real_models.study import Study, training_stage, trainings
from studies.real_models.training import train


def _table(study: Study, stage: str, name: str) -> pd.DataFrame:
    return pd.read_csv(study.results(stage) / f"{name}.csv")


def _do(stages: list[Stage], *names: str) -> None:
    for stage in stages:
        if stage.name in names:
            stage.work()


def test_a_model_written_differently_is_told_from_a_fine_tune(study: Study) -> None:
    stages = along.stages(study)
    _do(stages, "align-demo-medical-full-0", "rewritten-demo")
    trained, rewritten = (_table(study, name, "align") for name in ("align-demo-medical-full-0", "rewritten-demo"))
    assert (trained.moved == 0).all() and (trained.explained == 0).all() and {*trained.written} == {"as trained"}
    neurons = rewritten[rewritten.kind == "neurons"].iloc[0]
    assert neurons.moved > 0.9 and neurons.rescaled == 1
    assert neurons.explained > 0.9 and neurons.left == pytest.approx(trained.squared.iloc[0], rel=1e-3)
    path = _table(study, "rewritten-demo", "path")
    loss = path[path.metric == "loss"].set_index("alpha").value
    assert loss[0] == loss[1] != loss[0.5] and {*path.start} == {"itself"}


def test_the_path_goes_from_the_base_through_the_tuned_model_and_beyond(study: Study) -> None:
    _do(along.stages(study), "path-demo-medical-full-0")
    path = _table(study, "path-demo-medical-full-0", "path")
    loss = path[path.metric == "loss"].set_index("alpha").value
    assert [*loss.index] == [*along.PATH] and loss[1] < loss[0]
    assert path[["model", "domain", "method", "start"]].drop_duplicates().values.tolist() == [
        ["demo", "medical", "full", "base"]
    ]


def test_loras_begin_inside_and_outside_of_the_tuning_subspace_and_stay_there(study: Study) -> None:
    size = replace(study.size, domains={"demo": ("medical",)}, methods=("full", "lora"), steps=1, held_out=2)
    study = replace(study, size=size)
    full = trainings(size)[0]
    stages = {stage.name: stage for stage in along.stages(study)}
    stages["starts-demo-medical-full-0"].work()
    for one in trainings(size)[1:]:
        training_stage(study, one, study.base("demo"), ()).work()
    train(full, study.base("demo"), study.texts, study.tuned(full), held_out=size.held_out)
    for start in along.STARTS:
        stages[f"tune-demo-medical-lora-0-{start}"].work()
        folders = study.work / "starts" / full.name / start, study.tuned(full).parent / f"demo-medical-lora-0-{start}"
        before, after = (load_file(folder / "adapter_model.safetensors") for folder in folders)
        assert all(torch.equal(before[name], after[name]) for name in before if "lora_A" in name)
    stages["subspace-demo"].work()
    table = _table(study, "subspace-demo", "subspace").set_index("start")
    assert {*table.index} == {*along.STARTS, "both trained", "full"}
    assert table.before.nunique() == 1
    less = table.after - table.after["random"]
    for start in ("subspace", "orthogonal"):  # the others move by steps of another size
        assert table.less_random[start] == pytest.approx(less[start], abs=0.01)
    assert table.less_random.notna().sum() == 2


def test_a_trajectory_is_measured_as_trained_and_as_published(study: Study) -> None:
    one = replace(trainings(study.size)[0], steps=4)
    study = replace(study, size=replace(study.size, prompts=2))
    train(one, study.base("demo"), study.texts, study.tuned(one), held_out=2)
    stage = along._trajectory_stage(study, one)
    stage.work()
    rows = _table(study, stage.name, "trajectory")
    assert rows.groupby("dtype").step.apply(list).to_dict() == {"bfloat16": [0, 2, 4], "float32": [0, 2, 4]}
    last = rows[rows.step == 4].set_index("dtype")
    assert last.noise["bfloat16"] > last.noise["float32"] and last.straightness.min() >= 1
    assert {"trajectory_barriers.csv", "trajectory_turned.csv"} <= {p.name for p in study.results(stage.name).iterdir()}
    assert not (study.work / "trajectory" / one.name / "bfloat16").exists()
