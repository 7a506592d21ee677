"""Linear probes: planted directions are called what they are, and nothing is read where there is nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from probes.directions.labels import Label, label_of
from probes.directions.linear_probes import control, fitted, penalties_of, read, weights
from probes.directions.probing import Probing, Sides, probe_rows
from probes.directions.turning import turn, turn_interval, verdict
from probes.errors import RunError

N, D = 90, 24
#: Directions that lie along no axis.
AXES = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
Floats = NDArray[np.float64]


def _label(seed: int = 0) -> Label:
    """Two classes, 30 clusters of three prompts."""
    clusters = np.array([f"c{i // 3}" for i in range(N)])
    return Label("planted", np.array([(i // 3) % 2 for i in range(N)], np.float64), ("a", "b"), clusters)


def _along(axis: int | Floats, label: Label, seed: int, size: float = 3.0) -> Floats:
    """States that tell the label along one direction."""
    noise = np.random.default_rng(seed).normal(size=(len(label.values), D))
    direction = AXES[axis] if isinstance(axis, int) else axis
    return noise + size * (2 * label.values - 1)[:, None] * direction


def _row(base: Floats, tuned: Floats, **nulls: object) -> tuple[list[dict[str, object]], dict[str, object]]:
    label = _label()
    rows, row, _ = probe_rows(Sides(base, tuned, **nulls), (label, label), Probing(3, 20, 0), "tuned")  # type: ignore[arg-type]
    return rows, row


@pytest.mark.thorough
def test_a_direction_that_was_turned_by_hand_is_called_moved_and_another_the_same() -> None:
    label = _label()
    half = (AXES[0] + AXES[1]) / math.sqrt(2)
    base, turned = _along(0, label, seed=1), _along(half, label, 2)
    rounded = base.astype(np.float16).astype(np.float64)
    noise = base + 0.05 * np.random.default_rng(5).normal(size=base.shape)
    rows, row = _row(base, turned, rounded=[(base, rounded)], random=[(base, noise)])
    assert row["verdict"] == "moved" and row["readable_base"] and row["readable_tuned"]
    assert row["corrected"] == pytest.approx(math.sqrt(0.5), abs=0.1)
    assert row["change_rounded"] == 0 and row["corrected_rounded"] == pytest.approx(1, abs=1e-3)
    assert [each["fitted_on"] for each in rows] == ["base", "tuned", "base", "tuned"]
    both = (label, label)
    said = []
    for other in (_along(1, label, 2), 1.5 * _along(0, label, 2), rounded):
        found = turn(base, other, both, 100.0, 0)
        said.append(verdict(True, *turn_interval(base, other, both, 100.0, 0, found)[1], nulls=0.95))
    assert said == ["moved", "same direction", "same direction"]
    (same, other) = read(base, [base, _along(1, label, 2)], label, label.folds(4, 0), [100.0] * 4)
    assert same.accuracy[0] > 0.95 and other.accuracy[0] < 0.75  # what a moved direction costs in transfer


def test_nothing_is_readable_where_the_label_is_not_in_the_states() -> None:
    """States tell clusters apart, and nothing else: only folds of whole clusters see that no label is learnt."""
    label = _label()
    draw = np.random.default_rng(3)
    states = 5 * draw.normal(size=(N // 3, D))[np.arange(N) // 3] + 0.1 * draw.normal(size=(N, D))
    folds = label.folds(3, 0)
    (held_out,) = read(states, [states], label, folds, [10.0] * 3)
    shuffled = control(states, label, 3, [10.0] * 3, 20, 0)
    assert held_out.accuracy[0] < shuffled.max() and abs(shuffled.mean() - 0.5) < 0.1
    probe = fitted(states[::3], label.on(np.arange(0, N, 3)), 1.0)
    assert probe.score(states[1::3], label.values[1::3]) > 0.95  # other prompts of clusters that it has seen


def test_folds_and_control_tasks_keep_clusters_whole() -> None:
    label = _label()
    folds = label.folds(4, 0)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(N))
    assert not any(set(label.clusters[train]) & set(label.clusters[held]) for train, held in folds)
    moved = label.moved(7)
    by_cluster = moved.values.reshape(-1, 3)
    assert (by_cluster == by_cluster[:, :1]).all() and moved.values.sum() == label.values.sum()
    assert (moved.values != label.values).any()


def test_weights_are_of_states_as_they_are() -> None:
    label = _label()
    states = _along(0, label, 4) * np.linspace(0.1, 30, D) + np.arange(D)
    probe = fitted(states, label, 10.0)
    raw, start = weights(probe)
    assert np.allclose(states @ raw[0] + start[0], probe.decision_function(states))


def test_a_number_is_read_by_ridge_regression() -> None:
    draw = np.random.default_rng(6)
    states, clusters = draw.normal(size=(N, D)), np.array([f"c{i // 2}" for i in range(N)])
    label = Label("size", 3 * states[:, 2] + 0.3 * draw.normal(size=N) + 10, (), clusters)
    folds = label.folds(5, 0)
    (own,) = read(states, [states], label, folds, penalties_of(states, label, folds, 0))
    r2 = 1 - ((own.said - label.values) ** 2).sum() / ((label.values - label.values.mean()) ** 2).sum()
    assert own.accuracy[0] == pytest.approx(r2) and own.accuracy[1] > 0.8
    nothing = Label("noise", draw.normal(size=N), (), clusters)
    (none,) = read(states, [states], nothing, folds, penalties_of(states, nothing, folds, 0))
    assert none.accuracy[0] < 0.05


@pytest.mark.parametrize(
    ("values", "folds", "said"),
    [
        (["a"] * 8, 2, "every prompt has the value 'a'"),
        (["a"] * 7 + ["b"], 2, "'b' is in one cluster alone"),
        (["a", "b"] * 2 + [None] * 4, 5, "fewer than 5 folds"),
    ],
)
def test_a_label_that_cannot_be_both_learnt_and_held_out_is_refused(
    values: list[object], folds: int, said: str
) -> None:
    with pytest.raises(RunError, match=said):
        label_of("x", dict(zip("abcdefgh", values, strict=True)), {name: name for name in "abcdefgh"}, folds)


def test_whole_numbers_of_few_values_are_classes() -> None:
    clusters = {str(i): str(i) for i in range(24)}
    few, _ = label_of("x", {str(i): float(i % 3) for i in range(24)}, clusters, 3)
    many, _ = label_of("x", {str(i): i / 2 for i in range(24)}, clusters, 3)
    assert few.classes == ("0", "1", "2") and many.classes == () and many.majority == 0
