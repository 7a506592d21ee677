"""Logs paired item by item: planted changes, what cannot be paired, and clusters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tv
from tests.command import call
from tv.cli import main
from tv.errors import InputError

LOGS = Path(__file__).resolve().parents[4] / "data" / "logs"


def write(folder: Path, model: str, scores: dict[int, Any], task: str = "sums", **more: Any) -> Path:
    """Samples of a task in which these documents scored this."""
    path = folder / model / f"samples_{task}_2026-01-02T03-04-05.6.jsonl"
    path.parent.mkdir(exist_ok=True)
    text = more.get("text", "Sum {}?")
    rows = [
        {
            "doc_id": i,
            "doc": {"n": i, "topic": f"t{i // 4}"},
            "target": "4",
            "arguments": {"gen_args_0": {"arg_0": text.format(i), "arg_1": {}}},
            "resps": [["4"]],
            "filter": "none",
            "metrics": ["score"],
            "doc_hash": f"{task}{i}",
            "score": score,
        }
        for i, score in scores.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.parent


def test_planted_turns_are_mcnemars(tmp_path: Path) -> None:
    before = {i: float(i < 30) for i in range(60)}  # 30 of 60 right; then 4 lost and 16 gained
    after = before | {i: 0.0 for i in range(4)} | {i: 1.0 for i in range(30, 46)}
    logs = {"base": write(tmp_path, "base", before), "tuned": write(tmp_path, "tuned", after)}
    found = tv.compare_logs(logs).iloc[0]
    assert (found.n, found.clusters, found.test) == (60, 60, "mcnemar")
    assert (found.base, found.value, found.difference) == (0.5, pytest.approx(0.7), pytest.approx(0.2))
    assert found.p == pytest.approx(stats.binomtest(4, 20).pvalue)
    assert 0 < found.difference_lo < 0.2 < found.difference_hi
    # Alike within a topic, 15 draws say less than 60.
    clustered = tv.compare_logs(logs, cluster="topic").iloc[0]
    assert clustered.clusters == 15 and clustered.p > found.p
    assert clustered.difference_lo < found.difference_lo and clustered.detectable > found.detectable


def test_graded_scores_are_a_paired_t(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0, 1, 80)
    second = first + 0.3 + rng.normal(0, 0.5, 80)
    sides = (dict(enumerate(side.tolist())) for side in (first, second))
    logs = {name: write(tmp_path, name, side) for name, side in zip(("a", "b"), sides, strict=True)}
    found = tv.compare_logs(logs).iloc[0]
    assert found.test == "mean" and found.difference == pytest.approx((second - first).mean())
    assert stats.ttest_rel(second, first).pvalue <= found.p < 1e-3  # skewness may only widen it
    assert found.detectable == pytest.approx(0.5 * 2.84 / np.sqrt(80), rel=0.25)


def test_nothing_changed_is_not_found_and_tasks_are_corrected_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for task in range(20):
        for model in ("base", "tuned"):
            right = rng.random(60) < 0.5
            write(tmp_path, model, dict(enumerate(right.astype(float).tolist())), task=f"task{task}")
    found = tv.compare_logs({"base": tmp_path / "base", "tuned": tmp_path / "tuned"})
    assert len(found) == 20 and (found.holm > 0.05).all() and (found.q > 0.05).all()
    assert (found.holm >= found.q - 1e-12).all() and (found.q >= found.p - 1e-12).all()


def test_the_order_of_items_changes_nothing_and_what_is_alone_is_named(tmp_path: Path) -> None:
    scores = {i: float(i % 2) for i in range(20)}
    base = write(tmp_path, "base", scores)
    write(tmp_path, "base", scores, task="only_here")
    tuned = write(tmp_path, "tuned", {i: scores[i] for i in (*range(19, 4, -1),)} | {99: 1.0})
    found = tv.compare_logs({"base": base, "tuned": tuned})
    assert len(found) == 1 and (found.n[0], found.difference[0]) == (15, 0.0)
    assert found.attrs["notes"] == [
        "only base has only_here: not compared with tuned",
        "task sums: 5 items only base has a score of are left out: 0, 1, 2 and 2 more",
        "task sums: 1 items only tuned has a score of are left out: 99",
    ]


def test_the_same_items_in_other_words_are_refused(tmp_path: Path) -> None:
    scores = {i: float(i % 2) for i in range(20)}
    logs = {
        "base": write(tmp_path, "base", scores),
        "tuned": write(tmp_path, "tuned", scores, text="<user>Sum {}?</user>"),
    }
    with pytest.raises(InputError, match=r"20 of 20 items were asked in other words.*'Sum 0\?'.*'<user>Sum 0"):
        tv.compare_logs(logs)
    found = tv.compare_logs(logs, prompts="any")
    assert found.n[0] == 20 and "20 of 20 items were asked in other words" in found.attrs["notes"][0]


def test_what_cannot_be_compared_is_said_in_one_line(tmp_path: Path) -> None:
    one, other = write(tmp_path, "one", {0: 1.0}), write(tmp_path, "other", {0: 1.0}, task="texts")
    with pytest.raises(InputError, match="no task in common: a has sums, b texts"):
        tv.compare_logs({"a": one, "b": other})
    with pytest.raises(InputError, match="no item in common"):
        tv.compare_logs({"a": one, "b": write(tmp_path, "third", {1: 1.0})})
    with pytest.raises(InputError, match="one log"):
        tv.compare_logs({"a": one})
    with pytest.raises(InputError, match=r"no item of sums has a field 'kind'; there are n, topic"):
        tv.compare_logs({"a": one, "b": write(tmp_path, "fourth", {0: 0.0})}, cluster="kind")
    with pytest.raises(InputError, match="no item has a field 'kind'"):
        tv.read_logs(one, cluster="kind")
    with pytest.raises(InputError, match="no item has a score"):
        tv.read_logs(write(tmp_path, "none", {0: "?"}))


def test_epochs_of_a_sample_are_one_draw() -> None:
    logs = {name: LOGS / "inspect" / f"{name}.eval" for name in ("base", "medical")}
    found = tv.compare_logs(logs).set_index("metric")
    assert (found.n == 22).all() and (found.clusters == 11).all()
    assert found.test.to_dict() == {"match": "mcnemar", "form/begins": "mcnemar", "form/letters": "mean"}
    # At best all 11 samples turn one way, with both of their epochs: not 22 of 22.
    assert found.p["match"] >= 2 * 0.5**11
    rows = tv.read_logs(logs["base"])
    assert rows.item_id.str.contains("epoch").all() and rows.cluster.nunique() == 11


def test_the_command_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "with a space"
    place.mkdir()
    args = ["logs", LOGS / "lm-eval" / "base", LOGS / "lm-eval" / "medical", "-o", place / "t.json"]
    status, out, _ = call(monkeypatch, capsys, main, *args, "--prompts-out", place / "items.jsonl")
    assert status == 0 and "medical against base" in out and "144 prompts" in out
    rows = json.loads((place / "t.json").read_text())
    found = tv.compare_logs({name: LOGS / "lm-eval" / name for name in ("base", "medical")})
    assert [row["difference"] for row in rows] == found.difference.tolist()
    lines = [json.loads(line) for line in (place / "items.jsonl").read_text().splitlines()]
    assert len(lines) == 144 and {"id", "text", "target", "foil", "domain", "cluster"} == set(lines[0])

    status, out, _ = call(monkeypatch, capsys, main, "logs", f"mine={LOGS / 'inspect' / 'base.eval'}")
    assert status == 0 and "mine" in out and "2 samples ended in an error" in out
    for bad in (["logs", tmp_path / "none"], [*args[:3], "--prompts-out", place / "x.csv"]):
        status, out, err = call(monkeypatch, capsys, main, *bad)
        assert status == 2 and not out and len(err.strip().splitlines()) == 1
