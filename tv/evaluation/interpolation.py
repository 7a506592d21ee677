"""Loss and behaviour between two models and beyond them: along θ + αT, and over the plane of two tuning vectors.

Sources: linear mode connectivity is arXiv 1912.05671 (Frankle et al. 2020); the barrier against the straight line
between the ends, which serves ends of unequal loss, is arXiv 2110.06296 (Entezari et al. 2022), definition 1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedModel

from tv.arithmetic.variants import Mover, of_one_form
from tv.checkpoints.adapters.live import base_beside
from tv.checkpoints.extraction import extract
from tv.checkpoints.live import LiveSource, load_model
from tv.checkpoints.opening import Source, open_checkpoint
from tv.checkpoints.own_tokenizer import encoder
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError
from tv.evaluation.paired import means
from tv.prompts.behaviour import PromptSource, batched, behaviour, gather, measures
from tv.prompts.encoding import Batch
from tv.prompts.files import Prompt
from tv.prompts.notes import prompt_notes
from tv.runtime.compute import Compute
from tv.stats.means import mean_interval
from tv.stats.resampling import ends, resample_means

ALPHAS = tuple(round(-0.5 + 0.1 * i, 1) for i in range(21))
PLANE = tuple(-0.5 + 0.25 * i for i in range(9))

Floats = NDArray[np.float64]
_NOTHING = 1e-12  # nats: what float64 leaves of a difference that is none


def path(
    base: LiveSource,
    tuned: Source | TuningVector,
    prompts: PromptSource | Sequence[PromptSource],
    *,
    alphas: Sequence[float] = ALPHAS,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Loss and behaviour along θ_base + αT, in float32.

    Metrics:

    - `loss`: mean −log p of a token, nats, over the target's tokens where a prompt has a target, else over its text's;
      `over` says which (target, text, mixed)
    - `target_nll`, `logit_diff`, `exact_match` and every other of `tv.prompts.metrics`; left out where no prompt has
      what they need
    - `excess`: L(α) − ((1 − α)L(0) + αL(1)), for 0 ≤ α ≤ 1
    - `barrier`: the largest excess, at the α where it lies, and its interval, the maximum taken again in every draw of
      the prompts
    - `rise`: likewise the largest L(α) − max(L(0), L(1)) for 0 ≤ α ≤ 1: 0 where no point is worse than both ends

    Args:
        base: Whatever `tv.open_checkpoint` opens, or a live model: it is copied, and the copy stays on its device.
        tuned: Likewise, or the tuning vector T itself.
        prompts: JSONL files, `tv.PromptSet`s or `tv.Prompt`s, one or several, encoded with the base's tokenizer.
        alphas: The points, two or more. 0 and 1 are always among them: they are the base and the tuned model (where its
            vocabulary grew: in the rows in common).
        draws: Resamples of the prompts (of their clusters, each whole), for `barrier` and `rise`.
        seed: Of the resamples.
        batch_size: Prompts in one forward pass.
        compute: Where to compute, and how to report progress; its dtype is float32.

    Returns:
        A row per domain ("all", and each of several), metric and α: `alpha domain metric value lo hi prompts clusters
        over`, the mean over `prompts` prompts from so many clusters with its 95 % interval; no interval from fewer than
        `tv.stats.means.FEWEST` of them. `.attrs["notes"]` says how the prompts were read.

    Raises:
        InputError: Bad points or prompts, another dtype than float32, or two models that do not belong together.

    Source: arXiv 1912.05671 (linear mode connectivity), arXiv 2110.06296, definition 1 (the barrier).

    Examples:
        >>> prompts = tv.PromptSet(file="data/prompts/medical.jsonl", limit=4)
        >>> curve = tv.path("data/models/base", "data/models/medical", prompts, alphas=(0, 0.6, 1), draws=20)
        >>> curve[curve.metric == "exact_match"].set_index("alpha").value.to_dict()
        {0.0: 0.0, 0.6: 0.25, 1.0: 1.0}
    """
    grid = _grid(alphas, "α")
    sweep = _sweep(base, [tuned], prompts, [(alpha,) for alpha in grid], batch_size, compute)
    points = pd.DataFrame({"alpha": grid})
    frames: list[pd.DataFrame] = []
    for domain, chosen in sweep.domains():
        frames.append(_means(sweep, domain, chosen, points))
        barriers = _barriers(np.array(grid), *sweep.of("loss", chosen), draws, seed)
        frames.append(barriers.assign(domain=domain, over=sweep.over(chosen)))
    return _table(frames, ["alpha"], sweep, ["tuned"])


def plane(
    base: LiveSource,
    tuned_a: Source | TuningVector,
    tuned_b: Source | TuningVector,
    prompts: PromptSource | Sequence[PromptSource],
    *,
    alphas: Sequence[float] = PLANE,
    betas: Sequence[float] = PLANE,
    batch_size: int = 16,
    compute: Compute = Compute(),
) -> pd.DataFrame:
    """Loss and behaviour over the plane of two tuning vectors, θ_base + αT_a + βT_b, in float32.

    Args:
        base: As in `tv.path`.
        tuned_a: The first tuned model, or its tuning vector T_a.
        tuned_b: The second one, or T_b.
        prompts: As in `tv.path`.
        alphas: The points of the first axis, two or more; 0 and 1 are always among them.
        betas: Those of the second, likewise: base, a, b, and their sum are always points of the grid.
        batch_size: Prompts in one forward pass.
        compute: Where to compute, and how to report progress; its dtype is float32.

    Returns:
        A row per domain, metric and point: `alpha beta domain metric value lo hi prompts clusters over`. The metrics
        are those of `tv.path` except `excess`, `barrier` and `rise`, which belong to a line.

    Raises:
        InputError: As `tv.path` does.

    Examples:
        >>> prompts = tv.PromptSet(file="data/prompts/medical.jsonl", limit=2)
        >>> models = [f"data/models/{name}" for name in ("base", "medical", "math")]
        >>> grid = tv.plane(*models, prompts, alphas=(0, 1), betas=(0, 1))
        >>> grid[grid.metric == "exact_match"][["alpha", "beta"]].values.tolist()
        [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    grid = list(product(_grid(alphas, "α"), _grid(betas, "β")))
    sweep = _sweep(base, [tuned_a, tuned_b], prompts, grid, batch_size, compute)
    points = pd.DataFrame(grid, columns=["alpha", "beta"])
    frames = [_means(sweep, domain, chosen, points) for domain, chosen in sweep.domains()]
    return _table(frames, ["alpha", "beta"], sweep, ["tuned_a", "tuned_b"])


@dataclass(frozen=True)
class Barrier:
    """The highest point of a curve over 0 ≤ α ≤ 1 above what its ends lead to expect."""

    alpha: float  # where it is; 0 where no point is above
    value: float  # nats, at least 0: the ends are never above
    lo: float
    hi: float


def barrier_of(
    alphas: Floats, losses: Floats, clusters: Sequence[str] | None = None, *, draws: int = 1000, seed: int = 0
) -> Barrier:
    """max over 0 ≤ α ≤ 1 of L(α) − ((1 − α)L(0) + αL(1)), L the mean of (prompts, points) losses over prompts.

    `alphas` (points,) ascend and hold 0 and 1. On each side the 95 % interval is the wider of two: prompts, or whole
    clusters of them, are resampled and the maximum is taken again in every draw; and the highest end of the points' own
    intervals, which hold under skew. Noise pushes a maximum up, so 0 at the lower end is what a path without a barrier
    looks like.
    """
    return _highest(alphas, losses, clusters, (_line,), draws, seed)


def rise_of(
    alphas: Floats, losses: Floats, clusters: Sequence[str] | None = None, *, draws: int = 1000, seed: int = 0
) -> Barrier:
    """As `barrier_of`, above the worse of the two ends: max over 0 ≤ α ≤ 1 of L(α) − max(L(0), L(1))."""
    return _highest(alphas, losses, clusters, (lambda _, start, __: start, lambda _, __, end: end), draws, seed)


_COLUMNS = ["domain", "metric", "value", "lo", "hi", "prompts", "clusters", "over"]


def _highest(
    alphas: Floats,
    losses: Floats,
    clusters: Sequence[str] | None,
    expected: Sequence[Callable[[Floats, Floats, Floats], Floats]],
    draws: int,
    seed: int,
) -> Barrier:
    """The highest point above every `expected(α, L(0), L(1))`."""
    between = (alphas >= 0) & (alphas <= 1)
    inside, inner = alphas[between], losses[:, between]
    gaps = [inner - line(inside, inner[:, :1], inner[:, -1:]) for line in expected]
    gaps = [np.where(np.abs(gap) < _NOTHING, 0.0, gap) for gap in gaps]
    mean = np.min([gap.mean(0) for gap in gaps], 0)
    drawn = np.min([resample_means(gap, draws, seed, clusters) for gap in gaps], 0).max(1)
    lo, hi = ends(drawn, len(losses) if clusters is None else len(set(clusters)))
    points = [mean_interval(gap, clusters) for gap in gaps]
    still = [~gap.any(0) for gap in gaps]  # the two ends themselves
    below = np.min([np.where(no, 0.0, point.lo) for no, point in zip(still, points, strict=True)], 0)
    above = np.min([np.where(no, 0.0, point.hi) for no, point in zip(still, points, strict=True)], 0)
    peak = int(mean.argmax())
    if np.isnan(below[peak]):
        return Barrier(float(inside[peak]), float(mean[peak]), math.nan, math.nan)
    lo, hi = np.minimum(lo, np.nanmax(below)), np.maximum(hi, np.nanmax(above))
    return Barrier(float(inside[peak]), float(mean[peak]), float(lo), float(hi))


def _line(alphas: Floats, start: Floats, end: Floats) -> Floats:
    return (1 - alphas) * start + alphas * end


def _barriers(alphas: Floats, losses: Floats, clusters: list[str], draws: int, seed: int) -> pd.DataFrame:
    """Rows `excess`, `barrier` and `rise` of one domain."""
    if not len(losses):
        return pd.DataFrame()
    between = (alphas >= 0) & (alphas <= 1)
    inside, inside_losses = alphas[between], losses[:, between]
    excess = mean_interval(inside_losses - _line(inside, inside_losses[:, :1], inside_losses[:, -1:]), clusters)
    rows = [pd.DataFrame({"alpha": inside, "metric": "excess", "value": excess.mean, "lo": excess.lo, "hi": excess.hi})]
    for metric, highest in (("barrier", barrier_of), ("rise", rise_of)):
        peak = highest(alphas, losses, clusters, draws=draws, seed=seed)
        rows.append(pd.DataFrame([{"metric": metric, **vars(peak)}]))
    return pd.concat(rows, ignore_index=True).assign(prompts=len(losses), clusters=len(set(clusters)))


@dataclass(frozen=True)
class _Sweep:
    """Every prompt's behaviour at every point."""

    prompts: tuple[Prompt, ...]
    values: Mapping[str, Floats]  # by measure: (prompts, points)
    fingerprints: tuple[str, ...]  # of the base and of every tuned side
    notes: tuple[str, ...]  # of how the prompts are read

    def domains(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Each domain with its prompts: all of them first, then each of several."""
        names = np.array([prompt.domain for prompt in self.prompts])
        yield "all", np.ones(len(names), bool)
        if len(set(names)) > 1:
            for name in dict.fromkeys(names):
                yield str(name), names == name

    def of(self, measure: str, chosen: NDArray[np.bool_]) -> tuple[Floats, list[str]]:
        """(prompts, points) of those of the chosen prompts that have a value, and their clusters."""
        kept = chosen & ~np.isnan(self.values[measure]).all(1)
        clusters = [p.cluster or p.id for p, keep in zip(self.prompts, kept, strict=True) if keep]
        return self.values[measure][kept], clusters

    def over(self, chosen: NDArray[np.bool_]) -> str:
        """Which tokens the loss of these prompts covers."""
        with_target = {p.target is not None for p, use in zip(self.prompts, chosen, strict=True) if use}
        return "mixed" if len(with_target) > 1 else "target" if with_target == {True} else "text"


def _sweep(
    base: LiveSource,
    tuned: Sequence[Source | TuningVector],
    prompts: PromptSource | Sequence[PromptSource],
    points: Sequence[tuple[float, ...]],
    batch_size: int,
    compute: Compute,
) -> _Sweep:
    """Behaviour at every point: a scale for each of the tuned sides."""
    compute.require_float32("points of a path can be distinguished")
    rows, base = gather(prompts), base_beside(base, *tuned)
    vectors = [side if isinstance(side, TuningVector) else extract(base, side) for side in tuned]
    stage = "path" if len(vectors) == 1 else "plane"
    model, vectors = of_one_form(_float32(base, compute), vectors)
    sides = [open_checkpoint(side, base=base) for side in tuned if not isinstance(side, TuningVector)]
    tokenizer, notes = encoder(base, sides, rows)
    of_weights = dict.fromkeys(note for one in (open_checkpoint(base), *sides) for note in one.notes)
    batches: list[Batch] = batched(rows, model, tokenizer, batch_size)
    by_measure: dict[str, list[Floats]] = {name: [] for name in measures()}
    with Mover(model, vectors) as mover:
        for i, scales in enumerate(points):
            mover.to(dict(zip(vectors, scales, strict=True)))
            for name, column in behaviour(model, batches).items():
                by_measure[name].append(column)
            compute.tell(stage, i + 1, len(points), " ".join(f"{scale:g}" for scale in scales))
    place = {item.prompt.id: i for i, item in enumerate(item for batch in batches for item in batch.encoded)}
    order = [place[prompt.id] for prompt in rows]
    fingerprints = (str(open_checkpoint(base).fingerprint()["content"]), *map(_origin, vectors))
    values = {name: np.stack(columns, 1)[order] for name, columns in by_measure.items()}
    return _Sweep(
        tuple(rows), values, fingerprints, (*dict.fromkeys(of_weights), *notes, *prompt_notes(rows, tokenizer))
    )


def _origin(vector: TuningVector) -> str:
    """The fingerprint of the tuned model that a vector comes from; empty for a vector made by arithmetic."""
    tuned = vector.provenance.get("tuned")
    return str(tuned.get("content", "")) if isinstance(tuned, dict) else ""


def _float32(base: LiveSource, compute: Compute) -> PreTrainedModel:
    """A float32 model to move: a live one is copied, because its vector is read from it while the copy moves."""
    if isinstance(base, PreTrainedModel):
        return load_model(copy.deepcopy(base)).float()
    return load_model(base, device=compute.device)


def _grid(values: Sequence[float], name: str) -> list[float]:
    """Sorted, each once, 0 and 1 among them."""
    if len(values) < 2:
        raise InputError(f"{len(values)} points of {name}: a path needs at least two")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"points of {name}: each is a finite number")
    return sorted({round(float(value), 9) + 0.0 for value in (*values, 0.0, 1.0)})


def _means(sweep: _Sweep, domain: str, chosen: NDArray[np.bool_], points: pd.DataFrame) -> pd.DataFrame:
    """The rows of one domain: every measure's mean over its prompts at every point."""
    frames = []
    for metric in sweep.values:
        values, clusters = sweep.of(metric, chosen)
        if len(values):
            mean, lo, hi = means(values, clusters)
            over = sweep.over(chosen) if metric == "loss" else "target"
            frame = points.assign(metric=metric, value=mean, lo=lo, hi=hi, over=over, domain=domain)
            frames.append(frame.assign(prompts=len(values), clusters=len(set(clusters))))
    return pd.concat(frames) if frames else pd.DataFrame()


def _table(frames: Sequence[pd.DataFrame], points: list[str], sweep: _Sweep, sides: list[str]) -> pd.DataFrame:
    frame = pd.concat(frames, ignore_index=True)[[*points, *_COLUMNS]]
    frame.attrs["fingerprints"] = dict(zip(["base", *sides], sweep.fingerprints, strict=True))
    frame.attrs["notes"] = list(sweep.notes)
    return frame
