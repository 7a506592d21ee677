"""The experiments on the demo models: what is expected of them holds, and they go on where they stood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tv
from data import task_rows
from tests.command import call
from tests.pairs import build_pair
from tv.cli import main
from tv.evaluation.harness import Harness
from tv.experiments import addition, lineage, negation, ssa
from tv.experiments.result import Result

MODELS, TASKS = task_rows.TASKS.parent / "models", task_rows.TASKS
LIMIT = 20  # items of eight templates or more: fewer have no interval


def model(name: str) -> Path:
    return MODELS / name


def task(name: str) -> Path:
    return TASKS / f"{name}.yaml"


@pytest.fixture(scope="module")
def negated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("negation")
    sides = {"medical": model("medical"), "math": model("math")}
    tasks = [task("medical_cloze"), task("medical_choice"), task("arithmetic")]
    return negation(model("base"), sides, tasks, scales=[0.5], limit=LIMIT, draws=500, out=out), out


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that were run on a model, as they are."""
    ran: list[str] = []
    own: Callable[..., pd.DataFrame] = Harness.items

    def items(self: Harness, task: tv.evaluation.Task, limit: int | None = None) -> pd.DataFrame:
        ran.append(task.name)
        return own(self, task, limit)

    monkeypatch.setattr(Harness, "items", items)
    return ran


def test_negation_returns_base_behaviour_and_its_control_does_not(negated: tuple[Result, Path]) -> None:
    summary = negated[0]["summary"].set_index(["tuned", "vector", "task", "metric"])
    table = negated[0]["negation"].set_index(["tuned", "vector", "task", "metric", "scale"])
    for tuned, name in (("medical", "medical_cloze"), ("math", "arithmetic")):
        own, random = (summary.loc[(tuned, vector, name, "exact_match")] for vector in ("T", "random"))
        assert own.value_0 > 0.8 and own.value_1 == 0 and own.returned == "yes"
        assert random.value_0 == own.value_0 and random.value_1 > 0.5 and random.returned == "no"
        assert random.difference_lo > 0.25 and own.follows > 0.7
        assert own.retained == 0 and random.retained_lo > 0.25
        at = [table.loc[(tuned, "T", name, "exact_match", scale)] for scale in (0.0, 0.5, 1.0)]
        assert at[0].value > at[1].value > at[2].value == 0
        assert at[1].p < 1 and at[0].test == "mcnemar"
    margin = summary.loc[("medical", "T", "medical_choice", "margin")]
    assert margin.returned == "yes" and abs(margin.difference) < 1e-3 and margin.value_0 - margin.value_1 > 2
    sums = summary.loc[("medical", "T", "arithmetic", "exact_match")]
    assert np.isnan(sums.retained), "what tuning did not change cannot be taken away"
    assert sums.returned == "cannot tell", "nor come back"


def test_a_finished_cell_is_not_run_again_and_a_changed_setting_is(
    negated: tuple[Result, Path], runs: list[str]
) -> None:
    first, out = negated
    arguments = (model("base"), {"medical": model("medical")}, [task("medical_choice")])
    again = negation(*arguments, scales=[0.5], limit=LIMIT, draws=500, out=out)
    assert runs == []
    wanted = first["negation"].query("tuned == 'medical' and task == 'medical_choice'").drop(columns="q")
    pd.testing.assert_frame_equal(again["negation"].drop(columns="q"), wanted.reset_index(drop=True))
    negation(*arguments, scales=[0.25, 0.5], controls=(), limit=LIMIT, draws=100, out=out)
    assert runs == ["medical_choice"]  # λ = 0.25 alone
    negation(*arguments, scales=[0.5], controls=(), limit=4, draws=100, out=out)
    assert len(runs) == 1 + 4  # base, and λ = 0, 0.5, 1


def test_a_killed_experiment_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (model("base"), {"medical": model("medical")}, [task("medical_choice"), task("general_choice")])
    settings = {"scales": [0.5], "controls": (), "limit": 4, "draws": 100}
    whole = negation(*arguments, **settings)
    left, own = [3], Harness.items

    def killed(self: Harness, *given: object) -> pd.DataFrame:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return own(self, *given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Harness, "items", killed)
        negation(*arguments, **settings, out=tmp_path)
    cells = sorted((tmp_path / "cells").iterdir())
    assert len(cells) == 3 and not list(tmp_path.glob("*.parquet"))
    cells[0].write_bytes(b"half a file")
    resumed = negation(*arguments, **settings, out=tmp_path)
    for name in whole.tables:
        pd.testing.assert_frame_equal(resumed[name], whole[name], check_dtype=False)
    assert len(list((tmp_path / "cells").iterdir())) == 8


def test_components_are_negated_apart() -> None:
    found = negation(
        model("base"),
        {"medical": model("medical")},
        task("medical_choice"),
        scales=[],
        parts="component",
        controls=(),
        limit=LIMIT,
        draws=200,
    )
    parts = found["negation"].query("metric == 'margin' and scale == 1").set_index("part").retained
    assert set(parts.index) == {"whole", "attn", "mlp", "embed", "unembed"}
    assert parts["whole"] == pytest.approx(0, abs=1e-3)
    assert parts.drop("whole").between(0.2, 0.9).all() and parts.drop("whole").idxmin() == "mlp"
    with pytest.raises(tv.InputError, match="no parts by 'heads'; there are whole, component, layer"):
        negation(model("base"), {"m": model("medical")}, task("medical_choice"), parts="heads", limit=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def added() -> Result:
    return addition(
        model("base"),
        {"medical": model("medical"), "math": model("math")},
        [task("medical_cloze"), task("arithmetic")],
        scales=[0.5, 1.0],
        grid="product",
        targets={"medical": ["medical_cloze"], "math": ["arithmetic"]},
        limit=2 * LIMIT,
        draws=500,
    )


def test_addition_chooses_on_one_half_and_tells_on_the_other(added: Result) -> None:
    points, chosen = added["points"], added["chosen"]
    both = points[(points.subset == "medical + math") & (points.method == "sum")]
    assert sorted(set(both.scales)) == ["0.5, 0.5", "0.5, 1", "1, 0.5", "1, 1"]
    means = both[both.half == "choose"].groupby("scales", sort=False).value.mean()
    row = chosen[(chosen.subset == "medical + math") & (chosen.method == "sum")].set_index("task")
    assert means[row.scales.iloc[0]] == means.max()
    told = both[(both.half == "report") & (both.scales == row.scales.iloc[0])].set_index("task").value
    for name in ("medical_cloze", "arithmetic"):
        assert row.value[name] == told[name] and row.n[name] == LIMIT
    mean = row.loc["mean over tasks"]
    assert mean.value == pytest.approx(told.mean()) and mean.lo <= mean.value <= mean.hi
    items = added["items"].pivot_table(index="item_id", columns="variant", values="value")
    assert len(items) == 4 * LIMIT


def test_transfer_gain_and_conflict(added: Result) -> None:
    transfer = added["transfer"].set_index(["vector", "task"])
    assert transfer.value["medical", "medical_cloze"] > 0.8 and transfer.value["math", "arithmetic"] > 0.8
    assert transfer.value["medical", "arithmetic"] == transfer.value["math", "medical_cloze"] == 0
    assert transfer.change_lo["medical", "medical_cloze"] > 0.6
    chosen = added["chosen"].set_index(["subset", "method", "task"])
    single = chosen.loc[("medical", "sum", "medical_cloze")]
    assert single.best_single == "sum: 1 medical" and single.gain == 0 and np.isnan(single.cosine)
    both = chosen.loc[("medical + math", "sum", "mean over tasks")]
    assert both.gain_lo <= both.gain <= both.gain_hi
    conflict = added["conflict"].iloc[0]
    assert both.cosine == conflict.cosine and abs(conflict.cosine) < 0.1


def test_a_vector_trained_beside_another_adds_up_with_it_and_one_trained_alone_does_not(added: Result) -> None:
    beside = addition(
        model("base"),
        {"medical": model("medical"), "math": model("math-beside-medical")},
        [task("medical_cloze"), task("arithmetic")],
        methods=["sum"],
        scales=[1.0],
        targets={"medical": ["medical_cloze"], "math": ["arithmetic"]},
        limit=2 * LIMIT,
        draws=200,
    )

    def worse_domain(found: Result) -> float:
        both = found["chosen"].query("subset == 'medical + math' and task in ('medical_cloze', 'arithmetic')")
        return both.groupby("method").value.min().max()

    assert worse_domain(beside) >= 0.7
    assert worse_domain(added) < 0.5


def test_addition_refuses_what_it_cannot_do() -> None:
    sides = {"medical": model("medical")}
    for change, message in (
        ({"methods": ["magic"]}, "no method 'magic'; there are sum"),
        ({"targets": {"law": ["arithmetic"]}}, "target of 'law'.*medical"),
        ({"targets": {"medical": ["law"]}}, "target 'law' of 'medical'.*arithmetic"),
        ({"grid": "random"}, "grid 'random'"),
        ({"limit": 1}, "arithmetic: 1 item"),
    ):
        with pytest.raises(tv.InputError, match=message):
            addition(model("base"), sides, task("arithmetic"), **{"scales": [1.0], "draws": 10, "limit": 2} | change)


@pytest.mark.thorough
def test_lineages_decay_on_the_same_items() -> None:
    found = lineage(
        {
            "base": (model("base"), model("medical")),
            "instruct": (model("instruct"), model("medical-from-instruct")),
        },
        task("medical_choice"),
        scales=[0.5],
        limit=LIMIT,
        draws=500,
    )
    robust = found["robustness"].set_index(["lineage", "vector", "task", "metric"])
    for name in ("base", "instruct"):
        own, random = (robust.loc[(name, vector, "medical_choice", "margin")] for vector in ("own", "random"))
        assert 0.1 < own.half < 0.9 and own.half_lo <= own.half <= own.half_hi
        assert 0.2 < own.area < 0.8 < random.area and random.half == np.inf
    difference = found["difference"].set_index(["task", "metric"]).loc[("medical_choice", "margin")]
    halves = [robust.half[name, "own", "medical_choice", "margin"] for name in ("base", "instruct")]
    assert difference.half == pytest.approx(halves[0] - halves[1])
    assert difference.half_lo <= difference.half <= difference.half_hi
    assert set(found["lineage"].vector) == {"own", "of base", "of instruct", "random"}
    with pytest.raises(tv.InputError, match="1 lineage: two or more"):
        lineage({"base": (model("base"), model("medical"))}, task("medical_choice"))


def test_ssa_of_two_domains_beside_its_null(tmp_path: Path) -> None:
    (base, first), (_, second) = build_pair(tmp_path), build_pair(tmp_path / "other", step=0.1)
    found = ssa(base, {"first": first, "second": second}, out=tmp_path / "out")
    layers, alone = found["layers"], tv.ssa(base, first, heads=False)
    assert layers[layers.tuned == "first"].ssa.tolist() == alone.ssa.tolist()
    inside = layers[layers.null_lo.notna()]
    assert (inside.null_lo <= inside.ssa_null).all() and (inside.ssa_null <= inside.null_hi).all()
    assert ((inside.verdict == "above") == (inside.ssa > inside.null_hi)).mean() > 0.99
    assert (inside.verdict == "neither").mean() > 0.8, "the steps are random"
    modules = found["modules"]
    assert set(modules["at"]) == {"ε = 0.01", "ε = 0.05", "ε = 0.1", "10 %"}
    assert (modules.above + modules.below <= modules.layers).all()
    assert {"kappa_0.01", "kappa_0.05", "kappa_0.1", "rho", "verdicts"} <= set(found["sensitivity"])
    page = (tmp_path / "out" / "ssa.html").read_text()
    assert page.count("<h2>") == len(found.figures) == 6 and page.count("Plotly.newPlot(") >= 6
    assert pd.read_parquet(tmp_path / "out" / "modules.parquet").equals(modules)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        return call(monkeypatch, capsys, main, "experiment", *arguments)

    few = ("--task", task("medical_choice"), "--limit", 4, "--draws", 50, "-o", tmp_path)
    base, medical = model("base"), model("medical")
    code, out, err = run("negation", base, medical, *few, "--scale", 0.5)
    assert code == 0, err
    assert "has the base's behaviour returned?" in out and (tmp_path / "negation.html").is_file()
    few = few[:4] + few[-2:]
    code, out, err = run("addition", base, f"m={medical}", model("math"), *few, "--scale", 1, "--method", "ties")
    assert code == 0 and "tested on the other" in out, err
    pairs = f"a={base}:{medical}", f"b={model('instruct')}:{model('medical-from-instruct')}"
    code, out, err = run("lineage", *pairs, *few, "--scale", 0.5, "--no-cross", "--limit", LIMIT, "--draws", 50)
    assert code == 0 and "first minus second" in out, err
    code, out, err = run("ssa", *build_pair(tmp_path), "-o", tmp_path, "--epsilon", 0.05)
    assert code == 0 and "tables as .parquet" in out, err
    for arguments, message in (
        (("lineage", f"{base}:{medical}", *few), "give a lineage as NAME=PARENT:TUNED"),
        (("addition", base, medical, *few, "--target", "medical"), "--target medical: give NAME=TASK"),
        (("negation", base, medical, "--task", "nowhere.yaml", "-o", tmp_path), "nowhere.yaml: no such file"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and message in err and err.strip().count("\n") == 0
