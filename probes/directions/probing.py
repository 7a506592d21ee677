"""The tables of one label: what probes read in every layer of both models, and whether their direction turned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probes.directions.labels import Label
from probes.directions.linear_probes import (
    Reading,
    change,
    control,
    fitted,
    penalties_of,
    read,
    usual,
    weights,
)
from probes.directions.turning import turn, turn_interval, verdict
from probes.errors import RunError
from probes.store.run import Run
from tv.stats.families import benjamini_hochberg

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sides:
    """The states of one layer, (prompts, d_model) each, and the base beside what has learnt nothing."""

    base: Floats
    tuned: Floats
    rounded: Sequence[tuple[Floats, Floats]] = ()
    random: Sequence[tuple[Floats, Floats]] = ()


@dataclass(frozen=True)
class Probing:
    """How probes are fitted and compared with chance."""

    folds: int = 5
    controls: int = 20
    seed: int = 0


def probe_rows(
    sides: Sides, labels: tuple[Label, Label], wanted: Probing, tuned: str
) -> tuple[list[dict[str, object]], dict[str, object], list[dict[str, object]]]:
    """Every row of one layer.

    Args:
        sides: The states.
        labels: Of the base's prompts and of the tuned model's: they differ where each model has its own.
        wanted: Folds, control tasks and seed.
        tuned: The tuned model's name.

    Returns:
        The rows of `probe_accuracy`, the row of `probe_directions`, and the rows of `probe_weights`.
    """
    label, other = labels
    folds = label.folds(wanted.folds, wanted.seed)
    chosen = [
        penalties_of(states, own, folds, wanted.seed) for states, own in ((sides.base, label), (sides.tuned, other))
    ]
    base, moved = read(sides.base, [sides.base, sides.tuned], label, folds, chosen[0])
    own, back = read(sides.tuned, [sides.tuned, sides.base], other, folds, chosen[1])
    moved, back = replace(moved, label=other), replace(back, label=label)
    drawn = [
        control(states, one, wanted.folds, penalties, wanted.controls, wanted.seed)
        for states, one, penalties in ((sides.base, label, chosen[0]), (sides.tuned, other, chosen[1]))
    ]
    rows = [
        {"model": "base", "fitted_on": "base", **_accuracy(base, usual(chosen[0]), drawn[0])},
        {"model": tuned, "fitted_on": tuned, **_accuracy(own, usual(chosen[1]), drawn[1])},
        {"model": tuned, "fitted_on": "base", **_accuracy(moved, usual(chosen[0]))},
        {"model": "base", "fitted_on": tuned, **_accuracy(back, usual(chosen[1]))},
    ]
    found, lo, hi, p = change(base, own)
    row: dict[str, object] = {
        "n": len(label.values),
        "clusters": len(np.unique(label.clusters)),
        "accuracy_base": base.accuracy[0],
        "accuracy_tuned": own.accuracy[0],
        "readable_base": rows[0]["readable"],
        "readable_tuned": rows[1]["readable"],
        **_with_ends("change", found, lo, hi),
        "p": p,
        "change_rounded": _largest(_changes(sides.rounded, label, folds, chosen[0])),
        "change_random": _largest(_changes(sides.random, label, folds, chosen[0])),
        **_with_ends("lost_to_tuned", *change(moved, own)[:3]),
        **_with_ends("lost_to_base", *change(back, base)[:3]),
        **_turned(sides, labels, usual(chosen[0]), wanted.seed, bool(rows[0]["readable"] and rows[1]["readable"])),
    }
    return rows, row, list(_weights(sides, labels, [usual(each) for each in chosen], tuned))


def with_families(directions: pd.DataFrame) -> pd.DataFrame:
    """`probe_directions` of one label with `q` over its layers, and what is `changed` beyond both nulls."""
    q = benjamini_hochberg(directions.p.to_numpy(np.float64))
    nulls = directions[["change_rounded", "change_random"]].astype(float).abs()
    beyond = ~(nulls.ge(directions.change.abs(), axis=0)).any(axis=1) & nulls.notna().all(axis=1)
    return directions.assign(q=q, changed=(q < 0.05) & beyond)


def probe_weight(
    run: Run, label: str, layer: int, model: str = "tuned", *, site: str = "resid_post", tuned: str | None = None
) -> Mapping[str, NDArray[np.float32]]:
    """What a probe of a run adds up, by class: a direction to steer along.

    Args:
        run: A run with the table `probe_weights`.
        label: As the table names it.
        layer: From 0.
        model: "base" or "tuned".
        site: Where its states were read.
        tuned: Which tuned model's pair; default: the first.

    Returns:
        (d_model,) for each class, in the unit of the label's log odds per unit of the state; of two classes one, which
        points to the second; of a number one, by the name "".

    Raises:
        RunError: The run has no such probe.
    """
    pair = tuned or next(iter(run.manifest["suite"]["tuned"]))
    where = [("tuned", "==", pair), ("label", "==", label), ("layer", "==", layer), ("site", "==", site)]
    where.append(("model", "==", pair if model == "tuned" else model))
    rows = run.df("probe_weights", ["class", "weight"], where) if "probe_weights" in run.tables else pd.DataFrame()
    if rows.empty:
        raise RunError(
            f"{run.path}: no probe of {label} at {site} of layer {layer} in {model}; `probes probe {run.path} --label "
            f"{label}` makes it"
        )
    return {
        str(name): np.frombuffer(packed, np.float32) for name, packed in zip(rows["class"], rows["weight"], strict=True)
    }


def _accuracy(reading: Reading, penalty: float, drawn: Floats | None = None) -> dict[str, object]:
    accuracy, lo, hi = reading.accuracy
    label = reading.label
    row: dict[str, object] = {
        "classes": len(label.classes),
        "n": len(label.values),
        "clusters": len(np.unique(label.clusters)),
        "penalty": penalty,
        **_with_ends("accuracy", accuracy, lo, hi),
        "balanced": reading.balanced,
        "auroc": reading.auroc,
        "majority": label.majority,
    }
    if drawn is None or not len(drawn):
        empty = dict.fromkeys(("control", "control_largest", "selectivity", "p"), math.nan)
        return {**row, **empty, "readable": None}
    p = (1 + int((drawn >= accuracy).sum())) / (1 + len(drawn))
    return {
        **row,
        "control": float(drawn.mean()),
        "control_largest": float(drawn.max()),
        "selectivity": accuracy - float(drawn.mean()),
        "p": p,
        "readable": bool(p < 0.05 and lo > label.majority),
    }


def _changes(
    pairs: Sequence[tuple[Floats, Floats]],
    label: Label,
    folds: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    penalties: Sequence[float],
) -> list[float]:
    found = []
    for states in pairs:
        before, after = (read(one, [one], label, folds, penalties)[0] for one in states)
        found.append(change(before, after)[0])
    return found


def _turned(sides: Sides, labels: tuple[Label, Label], penalty: float, seed: int, readable: bool) -> dict[str, object]:
    found = turn(sides.base, sides.tuned, labels, penalty, seed)
    cosine, corrected = turn_interval(sides.base, sides.tuned, labels, penalty, seed, found)
    same = (labels[0], labels[0])
    rounded, random = (
        [turn(*states, same, penalty, seed) for states in pairs] for pairs in (sides.rounded, sides.random)
    )
    nulls = [each.corrected for each in (*rounded, *random)]
    return {
        **_with_ends("cosine", found.cosine, *cosine),
        "cosine_rounded": _smallest([each.cosine for each in rounded]),
        "cosine_random": _smallest([each.cosine for each in random]),
        "halves_base": found.halves_base,
        "halves_tuned": found.halves_tuned,
        "across": found.across,
        **_with_ends("corrected", found.corrected, *corrected),
        "corrected_rounded": _smallest([each.corrected for each in rounded]),
        "corrected_random": _smallest([each.corrected for each in random]),
        "verdict": verdict(readable, *corrected, _smallest(nulls)),
    }


def _weights(
    sides: Sides, labels: tuple[Label, Label], penalties: Sequence[float], tuned: str
) -> Iterator[dict[str, object]]:
    whole = zip(("base", tuned), (sides.base, sides.tuned), labels, penalties, strict=True)
    for model, states, label, penalty in whole:
        raw, start = weights(fitted(states, label, penalty))
        names = label.classes[1:] if len(label.classes) == 2 else label.classes or ("",)
        for name, weight, intercept in zip(names, raw, start, strict=True):
            packed = weight.astype(np.float32).tobytes()
            yield {"model": model, "class": name, "penalty": penalty, "weight": packed, "intercept": float(intercept)}


def _with_ends(name: str, value: float, lo: float, hi: float) -> dict[str, object]:
    return {name: value, f"{name}_lo": lo, f"{name}_hi": hi}


def _largest(values: Sequence[float]) -> float:
    return max(values, key=abs) if values else math.nan


def _smallest(values: Sequence[float]) -> float:
    return float(np.nanmin(values)) if len(values) and not np.isnan(values).all() else math.nan
