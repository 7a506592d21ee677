"""Logs of several models against the first, item by item: paired tests where both were asked the same."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from tv.errors import InputError, choices
from tv.evaluation.logs.read import COLUMNS, rows_of
from tv.evaluation.paired import difference, means, tables
from tv.prompts.logs.item import Item, Log
from tv.prompts.logs.reading import read_log
from tv.stats.families import benjamini_hochberg, holm
from tv.stats.means import Floats, detectable
from tv.stats.proportions import detectable_change

_FEW = 3  # ids in a note
_SHOWN = 60  # characters of a text in a message


def compare_logs(
    logs: Mapping[str, str | Path],
    *,
    cluster: str | None = None,
    prompts: Literal["same", "any"] = "same",
) -> pd.DataFrame:
    """What other evaluations logged of several models, compared with the first of them on the items that both have.

    Items are paired by their document (lm-evaluation-harness) or sample id and epoch (Inspect), in tasks of one name.

    Args:
        logs: Two or more by the model's name: what `tv.read_logs` reads. The first is the base.
        cluster: As in `tv.read_logs`: items of one cluster count as one draw.
        prompts: "same" refuses an item that the models were asked in other words, such as by other examples or through
            a chat template; "any" pairs it anyway, and a note counts such items.

    Returns:
        A row for every other model, task and metric: `variant task metric base base_lo base_hi value lo hi difference
        difference_lo difference_hi n clusters p test least_p holm q detectable`. Means, their change and 95 % intervals
        are over the n paired items. Where all values are 0 or 1, intervals are Wilson's and Newcombe's and the test is
        McNemar's, exact; else "mean": a paired t that allows for skewness. `holm` and `q` (Benjamini–Hochberg) correct
        over all rows. `detectable` is the change that so many items (clusters) would show in 4 of 5 such evaluations.
        `attrs["notes"]` counts and names what is not paired.

    Raises:
        InputError: Fewer than two logs, one that cannot be read, no task or item in common, or an item that the models
            were asked in other words.

    Examples:
        >>> found = tv.compare_logs({"base": "data/logs/lm-eval/base", "medical": "data/logs/lm-eval/medical"})
        >>> found[["task", "base", "value", "n", "test"]].round(2).values.tolist()[1]
        ['medical_choice', 0.17, 0.98, 48, 'mcnemar']
    """
    if prompts not in ("same", "any"):
        raise InputError(f"prompts {prompts!r}: same or any")
    if len(logs) < 2:
        raise InputError("one log: pass those of two models or more, the base's first")
    read = {name: _by_task(read_log(Path(log))) for name, log in logs.items()}
    first = next(iter(read))
    notes = [note for each in read.values() for log in each.values() for note in log.notes]
    rows = []
    for name in list(read)[1:]:
        for task in _common(read, first, name, notes):
            both = _paired(read[first][task], read[name][task], (first, name), prompts, notes)
            rows += list(_compared(both, (first, name), task, cluster, logs))
    frame = pd.DataFrame(rows)
    if frame.empty:
        raise InputError(f"{first} and {', '.join(list(read)[1:])}: no metric is a number in both logs")
    frame.insert(frame.columns.get_loc("least_p") + 1, "holm", holm(frame.p))
    frame.insert(frame.columns.get_loc("holm") + 1, "q", benjamini_hochberg(frame.p))
    frame.attrs["notes"] = list(dict.fromkeys(notes))
    return frame


def _by_task(logs: Sequence[Log]) -> dict[str, Log]:
    return {log.task: log for log in logs}


def _common(read: Mapping[str, Mapping[str, Log]], first: str, name: str, notes: list[str]) -> list[str]:
    """The tasks of both."""
    ours, theirs = read[first], read[name]
    common = [task for task in ours if task in theirs]
    if not common:
        raise InputError(
            f"{first} and {name}: no task in common: {first} has {_listed(ours)}, {name} {_listed(theirs)}; "
            "run both models on the same tasks"
        )
    for who, alone in ((first, ours), (name, theirs)):
        if left := [task for task in alone if task not in common]:
            notes.append(f"only {who} has {_listed(left)}: not compared with {name if who == first else first}")
    return common


def _paired(
    base: Log, tuned: Log, names: tuple[str, str], prompts: str, notes: list[str]
) -> tuple[list[Item], list[Item]]:
    """The items of both, in one order and with ids in common."""
    by_document = all(len({item.key for item in log.items}) == len(log.items) for log in (base, tuned))

    def key(item: Item) -> Hashable:
        return item.key if by_document else (item.key, item.id, item.draw)

    sides = [{key(item): item for item in log.items} for log in (base, tuned)]
    common = [each for each in sides[0] if each in sides[1]]
    if not common:
        raise InputError(
            f"task {base.task}: {names[0]} and {names[1]} have no item in common ({base.place}, {tuned.place}): "
            "another version of the task, or another choice of its items; run both alike"
        )
    for who, side in zip(names, sides, strict=True):
        if alone := [item for each, item in side.items() if each not in sides[1 if who == names[0] else 0]]:
            ids = _listed([item.id for item in alone])
            notes.append(f"task {base.task}: {len(alone)} items only {who} has a score of are left out: {ids}")
    pairs = [(sides[0][each], sides[1][each]) for each in common]
    other = [(one, two) for one, two in pairs if one.given != two.given]
    if other and prompts == "same":
        one, two = other[0]
        raise InputError(
            f"task {base.task}: {len(other)} of {len(pairs)} items were asked in other words, such as item {one.id}: "
            f"{names[0]} {_excerpt(one, two)!r}, {names[1]} {_excerpt(two, one)!r}; other examples, another chat "
            "template or version of the task: run both alike, or pair them all the same with prompts any (--any-prompt)"
        )
    if other:
        notes.append(f"task {base.task}: {len(other)} of {len(pairs)} items were asked in other words of {names[1]}")
    return [one for one, _ in pairs], [replace(two, id=one.id) for one, two in pairs]


def _compared(
    both: tuple[list[Item], list[Item]],
    names: tuple[str, str],
    task: str,
    cluster: str | None,
    logs: Mapping[str, str | Path],
) -> Iterator[dict[str, object]]:
    frames = [
        pd.DataFrame(rows_of(items, cluster), columns=COLUMNS).assign(variant=name)
        for name, items in zip(names, both, strict=True)
    ]
    rows = pd.concat(frames, ignore_index=True)
    if cluster is not None and len(rows) and rows.cluster.isna().all():
        fields = dict.fromkeys(name for item in both[0] for name in item.fields)
        raise InputError(f"{logs[names[0]]}: no item of {task} has a field {cluster!r}{choices(cluster, fields)}")
    rows["cluster"] = rows.cluster.fillna(rows.prompt_id)
    for (_, metric), table, clusters in tables(rows):
        if not {*names} <= {*table.columns}:
            continue
        table = table[list(names)]
        known = table.notna().all(axis=1).to_numpy()
        values = table.to_numpy(np.float64)[known]
        drawn = [name for name, kept in zip(clusters, known, strict=True) if kept]
        if not len(values):
            continue
        mean, lo, hi = means(values, drawn)
        found = difference(values[:, 0], values[:, 1], drawn)
        yield {
            "variant": names[1],
            "task": task,
            "metric": metric,
            "base": mean[0],
            "base_lo": lo[0],
            "base_hi": hi[0],
            "value": mean[1],
            "lo": lo[1],
            "hi": hi[1],
            "difference": found.difference,
            "difference_lo": found.lo,
            "difference_hi": found.hi,
            "n": found.n,
            "clusters": len(set(drawn)),
            "p": found.p,
            "test": found.test,
            "least_p": found.least_p,
            "detectable": _detectable(values, drawn, found.test),
        }


def _detectable(values: Floats, clusters: Sequence[str], test: str) -> float:
    """The change that so many units show: of shares as many turn as did, of means they spread as they did."""
    gap = pd.Series(values[:, 1] - values[:, 0]).groupby(np.asarray(clusters, object))
    n = gap.ngroups
    if test == "mcnemar":
        return detectable_change(n, max(1e-9, float((gap.sum() != 0).mean())))
    return detectable(n) * float(gap.mean().std(ddof=1))


def _excerpt(item: Item, other: Item) -> str:
    """Where a text begins to differ from another."""
    one, two = item.given, other.given
    if item.text is not None and other.text is not None and item.text != other.text:
        one, two = item.text, other.text
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    start = max(0, at - _SHOWN // 3)
    return "…" * (start > 0) + one[start : start + _SHOWN] + "…" * (start + _SHOWN < len(one))


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    each = list(names)
    return ", ".join(each[:_FEW]) + f" and {len(each) - _FEW} more" * (len(each) > _FEW)
