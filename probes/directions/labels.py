"""What a probe is to read: a label of every prompt, a class or a number; clusters stay whole in all that is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from probes.errors import RunError

#: Numbers with more distinct values than this are read as numbers, others as classes.
MOST_CLASSES = 10
#: Strata of a number: every fold has small ones and large ones.
_STRATA = 4

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Label:
    """The label of n prompts."""

    name: str
    values: NDArray[np.float64]  # (n,): the index of a class, or a number
    classes: tuple[str, ...]  # none where it is a number
    clusters: NDArray[np.str_]  # (n,)

    def on(self, chosen: NDArray[np.generic]) -> Label:
        """The same of some of the prompts."""
        return replace(self, values=self.values[chosen], clusters=self.clusters[chosen])

    @property
    def majority(self) -> float:
        """The share of the largest class: what is reached without looking. A number's R² is 0 without looking."""
        return float(np.bincount(self.values.astype(int)).max() / len(self.values)) if self.classes else 0.0

    def folds(self, n: int, seed: int) -> list[Fold]:
        """(training, held out) of n folds: clusters whole, classes spread as evenly as clusters allow."""
        split = StratifiedGroupKFold(min(n, len(np.unique(self.clusters))), shuffle=True, random_state=seed)
        return list(split.split(self.values, self._strata, self.clusters))

    def moved(self, seed: int) -> Label:
        """A control task: every cluster gets the labels of another one, drawn without looking at the prompts.

        Where a cluster is larger than the one whose labels it gets, these are repeated.
        """
        draw = np.random.default_rng(seed)
        names, which = np.unique(self.clusters, return_inverse=True)
        values = np.empty_like(self.values)
        for own, other in enumerate(draw.permutation(len(names))):
            here, given = np.flatnonzero(which == own), self.values[which == other]
            values[here] = np.resize(draw.permutation(given), len(here))
        return replace(self, values=values)

    @property
    def _strata(self) -> NDArray[np.int64]:
        if self.classes:
            return self.values.astype(np.int64)
        cuts = np.quantile(self.values, np.linspace(0, 1, _STRATA + 1)[1:-1])
        return np.searchsorted(cuts, self.values).astype(np.int64)


def label_of(
    name: str, by_prompt: Mapping[str, object], clusters: Mapping[str, str], folds: int
) -> tuple[Label, list[str]]:
    """The label of the prompts that have a value, and their ids.

    Args:
        name: Of the label.
        by_prompt: A value by prompt id: a text, a number or a truth value; None or NaN is none.
        clusters: The cluster of every prompt of the run, by id.
        folds: How many folds it has to serve.

    Raises:
        RunError: It cannot be read by folds of whole clusters: one class, a class in one cluster, too few prompts.

    Examples:
        >>> clusters = {str(i): str(i) for i in range(8)}
        >>> label, ids = label_of("even", {str(i): i % 2 == 0 for i in range(8)}, clusters, folds=4)
        >>> label.classes, len(ids), label.majority
        (('False', 'True'), 8, 0.5)
    """
    ids = [prompt for prompt in clusters if not _missing(by_prompt.get(prompt))]
    values = [by_prompt[prompt] for prompt in ids]
    groups = np.array([clusters[prompt] for prompt in ids], dtype=np.str_)
    n = len(np.unique(groups))
    if n < folds:
        raise RunError(
            f"label {name}: {len(ids)} prompts with a value, in {n} clusters, are fewer than {folds} folds; "
            "give more prompts a value, or set --folds"
        )
    numbers = all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in values)
    if numbers and len(set(values)) > MOST_CLASSES:
        return Label(name, np.array(values, np.float64), (), groups), ids
    texts = [_text(value) for value in values]
    classes = tuple(sorted(set(texts)))
    if len(classes) < 2:
        raise RunError(f"label {name}: every prompt has the value {classes[0]!r}; a probe needs two classes")
    for one in classes:
        own = {group for group, text in zip(groups.tolist(), texts, strict=True) if text == one}
        if len(own) < 2:
            raise RunError(
                f"label {name}: {one!r} is in one cluster alone ({next(iter(own))}), so that it cannot be both learnt "
                "and held out; leave these prompts without a value, or join classes"
            )
    return Label(name, np.array([classes.index(text) for text in texts], np.float64), classes, groups), ids


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value)) or value == ""


def _text(value: object) -> str:
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole and isinstance(value, float | np.floating) else str(value)


def own_label(name: str, values: Sequence[object], ids: Sequence[str]) -> dict[str, object]:
    """A label by prompt id. Raises RunError for an id that stands twice."""
    found: dict[str, object] = {}
    for prompt, value in zip(ids, values, strict=True):
        if prompt in found:
            raise RunError(f"label {name}: prompt {prompt!r} has two values; keep one row a prompt")
        found[prompt] = value
    return found
