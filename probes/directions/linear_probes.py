"""Linear probes: is a label readable from the states of a model, on clusters that the probe has not seen?

Logistic regression reads classes, ridge regression numbers. States are standardised on the prompts that a probe is
fitted on, and its penalty is chosen among these alone.

Source: J. Hewitt and P. Liang (2019), arXiv 1909.03368: control tasks and selectivity.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.directions.labels import Fold, Label
from tv.stats.means import mean_interval
from tv.stats.proportions import mcnemar_p, share_change, share_interval

Floats = NDArray[np.float64]
#: Penalties that are tried: λ of λ/2·‖w‖² beside the summed loss, for standardised states.
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
#: Folds inside the training prompts, by which the penalty is chosen.
_INNER = 3


@dataclass(frozen=True)
class Reading:
    """What probes say of prompts that they were not fitted on."""

    label: Label
    said: Floats  # (n,): the index of a class, or a number
    score: Floats  # (n,): the probability of the second of two classes; NaN otherwise

    @property
    def hits(self) -> Floats:
        """(n,): whether each prompt is read right. Of a number 1 − (its error)²/variance, the mean of which is R²."""
        values = self.label.values
        if self.label.classes:
            return (self.said == values).astype(np.float64)
        return 1 - (self.said - values) ** 2 / max(float(np.var(values)), 1e-300)

    @property
    def balanced(self) -> float:
        """The mean accuracy over classes; NaN of a number."""
        return float(balanced_accuracy_score(self.label.values, self.said)) if self.label.classes else np.nan

    @property
    def auroc(self) -> float:
        """Of two classes; NaN otherwise."""
        two = len(self.label.classes) == 2
        return float(roc_auc_score(self.label.values, self.score)) if two else np.nan

    @property
    def accuracy(self) -> tuple[float, float, float]:
        """(accuracy, lo, hi): Wilson's interval over clusters; of a number R², with that of a mean."""
        if self.label.classes:
            return share_interval(self.hits, self.label.clusters.tolist())
        mean = mean_interval(self.hits, self.label.clusters.tolist())
        return float(mean.mean), float(mean.lo), float(mean.hi)


def change(before: Reading, after: Reading) -> tuple[float, float, float, float]:
    """(change, lo, hi, p) of accuracy on the same prompts: Newcombe's interval and McNemar's test, over clusters."""
    clusters = before.label.clusters.tolist()
    if before.label.classes:
        moved = share_change(before.hits, after.hits, clusters)
        return *moved, mcnemar_p(before.hits, after.hits, clusters)
    mean = mean_interval(after.hits - before.hits, clusters)
    return float(mean.mean), float(mean.lo), float(mean.hi), float(mean.p)


def penalties_of(states: Floats, label: Label, folds: Sequence[Fold], seed: int) -> list[float]:
    """The penalty of each fold, chosen on its training prompts alone.

    It is the largest within one standard error of the best: directions of probes that hardly shrink are noise, however
    well they read.
    """
    return [_penalty(states[train], label.on(train), seed) for train, _ in folds]


def usual(penalties: Sequence[float]) -> float:
    """The penalty that most folds chose; the larger of two."""
    counts = Counter(penalties)
    return max(counts, key=lambda penalty: (counts[penalty], penalty))


def read(
    fitted_on: Floats, read_on: Sequence[Floats], label: Label, folds: Sequence[Fold], penalties: Sequence[float]
) -> list[Reading]:
    """What probes of one model say of prompts that they were not fitted on, by the states of this or other models.

    Args:
        fitted_on: (n, d): the states that probes are fitted on.
        read_on: (n, d) each: the states of the same prompts that they then read.
        label: Of the n prompts.
        folds: Which prompts are held out together.
        penalties: One a fold.

    Returns:
        A reading for each of `read_on`.
    """
    said, score = (np.full((len(read_on), len(label.values)), np.nan) for _ in range(2))
    for (train, held), penalty in zip(folds, penalties, strict=True):
        probe = fitted(fitted_on[train], label.on(train), penalty)
        for i, states in enumerate(read_on):
            said[i, held] = probe.predict(states[held])
            if len(label.classes) == 2:
                known = list(probe.classes_)
                score[i, held] = probe.predict_proba(states[held])[:, known.index(1.0)] if 1.0 in known else 0.0
    return [Reading(label, *pair) for pair in zip(said, score, strict=True)]


def control(states: Floats, label: Label, folds: int, penalties: Sequence[float], draws: int, seed: int) -> Floats:
    """(draws,): the accuracy where the labels were moved among clusters, so that there is nothing to learn."""
    found = []
    for draw in range(draws):
        moved = label.moved(seed + draw)
        split = moved.folds(folds, seed + draw)
        (reading,) = read(states, [states], moved, split, penalties[: len(split)])
        found.append(float(reading.hits.mean()))
    return np.array(found)


def fitted(states: Floats, label: Label, penalty: float) -> Pipeline:
    """A probe of these prompts: states are standardised, then read."""
    if not label.classes:
        with _quick():
            return make_pipeline(StandardScaler(), Ridge(alpha=penalty)).fit(states, label.values)
    if len(np.unique(label.values)) < 2:
        return make_pipeline(DummyClassifier()).fit(states, label.values)
    with _quick():
        return _logistic(penalty).fit(states, label.values)


def weights(probe: Pipeline) -> tuple[Floats, Floats]:
    """(rows, d) and (rows,): what a probe adds up of states as they are, with standardisation undone, and where from.

    One row for a number or two classes (towards the second), else one a class.
    """
    scaler, model = probe[0], probe[-1]
    raw = np.atleast_2d(model.coef_) / scaler.scale_
    return raw, np.atleast_1d(model.intercept_) - raw @ scaler.mean_


def _logistic(penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=200, tol=1e-3))


def _penalty(states: Floats, label: Label, seed: int) -> float:
    folds = label.folds(_INNER, seed)
    if len(folds) < 2 or any(label.classes and len(np.unique(label.values[train])) < 2 for train, _ in folds):
        return PENALTIES[1]
    probe, name = make_pipeline(StandardScaler(), Ridge()), "ridge__alpha"
    tried = sorted(PENALTIES, reverse=True)
    grid: list[float] = tried
    if label.classes:
        probe, name = (
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-3)),
            "logisticregression__C",
        )
        grid = [1 / penalty for penalty in tried]
    with _quick():
        search = GridSearchCV(probe, {name: grid}, cv=folds, refit=False).fit(states, label.values)
    scores = np.stack([search.cv_results_[f"split{i}_test_score"] for i in range(len(folds))])
    best = int(scores.mean(0).argmax())
    enough = scores.mean(0) >= scores.mean(0)[best] - scores[:, best].std(ddof=1) / np.sqrt(len(folds))
    return tried[int(enough.argmax())]


@contextmanager
def _quick() -> Iterator[None]:
    """Thousands of small fits: what is known of states is not checked again, nor warned of."""
    with config_context(assume_finite=True, skip_parameter_validation=True), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a direction is known long before its last digit
        yield
