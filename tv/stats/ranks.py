"""Rank correlations over units: which stand out of shuffled units, and how far others could lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from tv.stats.means import FEWEST, Floats
from tv.stats.resampling import resample_means

Indices: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]
#: Values that agree in this many binary digits (five decimal ones) are tied: rounding has no order.
_DIGITS = 16


class Correlation(NamedTuple):
    """A rank correlation, its 95 % interval, and how many units are in it."""

    rho: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True)
class Correlations:
    """Every x with every y: rank correlations, their 95 % intervals, and those of the same units shuffled."""

    rho: Floats  # (xs, ys); NaN where a side is constant or fewer than three units are known
    lo: Floats  # (xs, ys); NaN with fewer than FEWEST blocks of units, or of clusters
    hi: Floats  # (xs, ys)
    n: Indices  # (xs, ys): units
    null: Floats  # (draws, xs, ys)


def rank_correlations(
    xs: ArrayLike,
    ys: Sequence[Floats],
    *,
    draws: int,
    seed: int,
    types: Sequence[str] | None = None,
    blocks: Sequence[int] | None = None,
    clusters: Sequence[str] | None = None,
) -> Correlations:
    """Spearman's rank correlation of every x with the prompt means of every y, where the units are the sample.

    Ranks are taken among units of one type, as shares of their number: what types have in common is no correlation.
    Shuffles exchange whole blocks: each unit goes to the place of its type in another block, so that units of one block
    stay together, however alike they are. The shuffles are the same for all pairs, and for every call with the same
    blocks and seed. The interval is Student's t on Fisher's z, with the standard error of draws that resample both
    blocks and clusters of prompts (the pigeonhole bootstrap, which is a little wide), and at least that of independent
    units, √((1 + ρ²/2)/(n − 3)). It is about the correlation of *measured* means over as many blocks: noise between
    prompts pulls that towards 0, and no interval puts it back.

    Args:
        xs: (k, units), known values.
        ys: (prompts, units) each. NaN is a prompt without a value in that unit.
        draws: Of shuffles, and of resamples.
        seed: Of both.
        types: The type of each unit; None: all are of one.
        blocks: The block of each unit, such as its layer, with one unit of a type at most; None: each is its own.
            Blocks with other types than the rest cannot be exchanged with them, and one that is alone in that is left
            out.
        clusters: The cluster of each prompt; None: every prompt is its own.

    Returns:
        `rho lo hi n null`.

    Source: A. B. Owen (2007), Ann. Appl. Stat. 1 (resampling rows and columns); D. G. Bonett and T. A. Wright (2000),
    Psychometrika 65 (the error of independent units).

    Examples:
        >>> y = np.tile([2.0, 1.0, 4.0, 3.0, 5.0, 6.0, 7.0, 9.0], (10, 1))
        >>> found = rank_correlations([np.arange(8.0)], [y], draws=999, seed=0)
        >>> found.rho.round(2).item(), shuffled_p(found.rho, found.null).item() < 0.01
        (0.95, True)
    """
    known = np.asarray(xs, np.float64)
    units = _Units.of(known.shape[1], types, blocks)
    shape = (len(known), len(ys))
    rho, lo, hi = (np.full(shape, np.nan) for _ in range(3))
    n, null = np.zeros(shape, np.int64), np.full((draws, *shape), np.nan)
    means = np.array([_mean(y) for y in ys]).reshape(len(ys), known.shape[1])
    for used, i, j in _alike(~np.isnan(known), ~np.isnan(means)):
        grids = units.grids(used)
        at, n_units = np.ix_(i, j), sum(grid.size for grid in grids)
        n[at] = n_units
        if n_units < 3:
            continue
        left, right = (_ranks([side[..., grid] for grid in grids]) for side in (known[i], means[j]))
        rho[at] = (left @ right.T).clip(-1, 1)
        null[:, i[:, None], j] = left @ _reordered(right, grids, units.shuffles(grids, draws, seed))
        n_blocks = sum(len(grid) for grid in grids)
        if n_blocks < FEWEST:
            continue
        drawn = _drawn(grids, draws, seed)
        left = _ranks([known[i][:, grid][:, blocks] for grid, blocks in zip(grids, drawn, strict=True)])
        for y in j:
            sample = min(n_blocks, _clusters_in(ys[y], clusters))
            if sample >= FEWEST:
                values = resample_means(ys[y], draws, seed, clusters)
                right = _ranks([_taken(values[:, grid], blocks) for grid, blocks in zip(grids, drawn, strict=True)])
                least = (1 + rho[i, y] ** 2 / 2) / max(n_units - 3, 1)
                lo[i, y], hi[i, y] = _interval(rho[i, y], (left * right).sum(-1), n_units, sample - 2, least)
    null[:, np.isnan(rho)] = np.nan
    return Correlations(rho, lo, hi, n, null)


def shuffled_p(rho: Floats, null: Floats) -> Floats:
    """(pairs…): the share of shuffles as far from 0 as each rho, the real order counted as one; NaN where it is."""
    as_far = np.count_nonzero(np.abs(null) >= np.abs(rho) - 1e-9, axis=0)
    return np.where(np.isnan(rho), np.nan, (as_far + 1) / (len(null) + 1))


def family_p(rho: Floats, null: Floats) -> Floats:
    """p of each pair of a family in which any of them might be named: that of the largest under the same shuffles.

    Args:
        rho: (pairs,).
        null: (draws, pairs): of shuffled units, the same shuffles for all pairs.

    Returns:
        (pairs,): the share of shuffles in which any pair, each in its own standard deviations, is as far from 0 as this
        one. NaN pairs do not count.

    Source: P. H. Westfall and S. S. Young (1993), Resampling-Based Multiple Testing: single-step max-T.

    Examples:
        >>> null = np.random.default_rng(0).normal(0, 0.3, size=(999, 20))
        >>> bool(family_p(np.full(20, 0.7), null)[0] > 5 * shuffled_p(np.full(20, 0.7), null)[0])
        True
    """
    known = ~np.isnan(rho)
    p = np.full(rho.shape, np.nan)
    if known.any():
        orders = np.vstack([rho[None, known], null[:, known]])  # the real order too, so that all are alike by chance
        spread = np.sqrt((orders**2).mean(0))
        far = np.abs(orders / np.where(spread > 0, spread, np.inf))
        p[known] = shuffled_p(far[0], far[1:].max(1, keepdims=True))
    return p


def bootstrap_spearman(
    x: ArrayLike, y: ArrayLike, draws: int, seed: int, clusters: Sequence[str] | None = None
) -> Correlation:
    """Spearman's rank correlation over units of the prompt means of x and of y, where the prompts are the sample.

    The units are all there are, such as the components of a model. The interval is Student's t on Fisher's z, with the
    standard error of resampled prompts, the same in both. Noise between prompts pulls the correlation towards 0.

    Args:
        x: (prompts, units).
        y: (prompts, units).
        draws: Resamples.
        seed: Of them.
        clusters: The cluster of each prompt, drawn whole; not where x and y come from different prompts.

    Returns:
        `rho lo hi n`. Units in which either is NaN are left out; with fewer than three, or a side that is constant, all
        are NaN. No interval with fewer than `FEWEST` prompts or clusters.

    Examples:
        >>> x = np.random.default_rng(0).normal(size=(10, 5)) + np.arange(5)
        >>> bootstrap_spearman(x, np.exp(x), 200, 0).n
        5
    """
    left, right = (np.asarray(side, np.float64) for side in (x, y))
    used = ~np.isnan(_mean(left)) & ~np.isnan(_mean(right))
    n = int(used.sum())
    if n < 3:
        return Correlation(np.nan, np.nan, np.nan, n)
    rho = (_plain_ranks(_mean(left)[used]) @ _plain_ranks(_mean(right)[used])).clip(-1, 1)
    prompts = min(_clusters_in(side, clusters) for side in (left, right))
    if np.isnan(rho) or prompts < FEWEST:
        return Correlation(float(rho), np.nan, np.nan, n)
    a, b = (_plain_ranks(resample_means(side, draws, seed, clusters)[:, used]) for side in (left, right))
    lo, hi = _interval(rho[None], (a * b).sum(1)[None], n, prompts - 1, np.zeros(1))
    return Correlation(float(rho), float(lo[0]), float(hi[0]), n)


def shuffled_spearman(rho: float, n: int, draws: int, seed: int) -> tuple[float, float, float]:
    """(lo, hi, p): where 95 % of rank correlations of n shuffled units fall, and the share as far from 0 as `rho`.

    Ties are ignored: the null is that of n distinct ranks. NaN for fewer than three units or an unknown rho.
    """
    if n < 3 or np.isnan(rho):
        return np.nan, np.nan, np.nan
    null, lo, hi = _shuffled(n, draws, seed)
    return lo, hi, float(shuffled_p(np.array(rho), null))


@lru_cache(maxsize=256)
def _shuffled(n: int, draws: int, seed: int) -> tuple[Floats, float, float]:
    """Sizes of the rank correlations of n shuffled units, and where 95 % of them fall."""
    order = np.arange(1.0, n + 1)
    null = _plain_ranks(np.random.default_rng(seed).permuted(np.tile(order, (draws, 1)), axis=1)) @ _plain_ranks(order)
    lo, hi = np.percentile(null, [2.5, 97.5])
    return np.abs(null), float(lo), float(hi)


@dataclass(frozen=True)
class _Units:
    """Which type and block each unit is of."""

    types: NDArray[np.str_]
    blocks: Indices  # from 0

    @classmethod
    def of(cls, n: int, types: Sequence[str] | None, blocks: Sequence[int] | None) -> _Units:
        named = np.asarray([""] * n if types is None else types, str)
        return cls(named, np.unique(np.arange(n) if blocks is None else np.asarray(blocks), return_inverse=True)[1])

    def grids(self, used: Flags) -> list[Indices]:
        """(blocks, types) of indices of used units, one array for all blocks that have the same types."""
        held: dict[int, dict[str, int]] = {}
        for unit in np.flatnonzero(used):
            held.setdefault(int(self.blocks[unit]), {})[str(self.types[unit])] = int(unit)
        alike: dict[tuple[str, ...], list[list[int]]] = {}
        for units in held.values():
            names = tuple(sorted(units))
            alike.setdefault(names, []).append([units[name] for name in names])
        return [np.array(rows) for rows in alike.values() if len(rows) > 1]

    def shuffles(self, grids: list[Indices], draws: int, seed: int) -> list[Indices]:
        """(draws, blocks) per grid: another order of its blocks, the same for all grids of the same blocks."""
        keys = np.random.default_rng(seed).random((draws, int(self.blocks.max(initial=0)) + 1))
        return [keys[:, self.blocks[grid[:, 0]]].argsort(axis=1) for grid in grids]


def _drawn(grids: list[Indices], draws: int, seed: int) -> list[Indices]:
    """(draws, blocks) per grid: blocks drawn with replacement."""
    generator = np.random.default_rng([seed, 1])  # other numbers than those that draw prompts
    return [generator.integers(len(grid), size=(draws, len(grid))) for grid in grids]


def _taken(values: Floats, blocks: Indices) -> Floats:
    """(draws, blocks, types) of each draw's blocks."""
    return np.take_along_axis(values, blocks[:, :, None], axis=1)


def _reordered(ranks: Floats, grids: list[Indices], orders: list[Indices]) -> Floats:
    """(draws, units, ys) of the ranks (ys, units) of `_ranks`, with each grid's blocks in every order."""
    parts, start = [], 0
    for grid, order in zip(grids, orders, strict=True):
        part = ranks[:, start : start + grid.size].reshape(-1, *grid.shape)
        parts.append(part[:, order].reshape(len(ranks), len(order), -1))
        start += grid.size
    return np.concatenate(parts, axis=-1).transpose(1, 2, 0)


def _ranks(parts: Sequence[Floats]) -> Floats:
    """Of parts (…, blocks, types): ranks among the blocks of each, centred and of norm 1, as (…, units).

    Their products are rank correlations. NaN where all values are constant, or one is NaN.
    """
    ranks = [stats.rankdata(_rounded(part), axis=-2) / (part.shape[-2] + 1) - 0.5 for part in parts]
    flat = np.concatenate([part.reshape(*part.shape[:-2], -1) for part in ranks], axis=-1)
    with np.errstate(invalid="ignore"):
        return flat / np.linalg.norm(flat, axis=-1, keepdims=True)


def _plain_ranks(values: Floats) -> Floats:
    """`_ranks` of (…, units) that are all of one type."""
    return _ranks([values[..., None]])


def _rounded(values: Floats) -> Floats:
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, _DIGITS)), exponent - _DIGITS)


def _interval(rho: Floats, draws: Floats, n: int, free: int, least: Floats) -> tuple[Floats, Floats]:
    """Student's t on Fisher's z of (pairs,), whose error is that of (pairs, draws); `least` is the least variance of z.

    It holds rho itself, and is NaN where rho is.
    """
    top = 1 - 6 / (n**3 - n)  # half a step below 1, which z has no number for
    z = np.arctanh(rho.clip(-top, top))
    drawn = np.arctanh(draws.clip(-top, top))
    known = ~np.isnan(drawn)
    mean = np.where(known, drawn, 0).sum(1) / known.sum(1).clip(1)
    variance = np.where(known, (drawn - mean[:, None]) ** 2, 0).sum(1) / known.sum(1).clip(1)
    reach = stats.t.ppf(0.975, free) * np.sqrt(np.maximum(variance, least))
    lo, hi = (np.where(reach > 0, np.tanh(z + side * reach), rho) for side in (-1, 1))
    return np.minimum(lo, rho), np.maximum(hi, rho)


def _alike(xs: Flags, ys: Flags) -> Iterator[tuple[Flags, Indices, Indices]]:
    """(units, xs, ys): the x that are known for the same units, and such y, and the units that both have."""
    for x in np.unique(xs, axis=0):
        for y in np.unique(ys, axis=0):
            yield x & y, np.flatnonzero((xs == x).all(1)), np.flatnonzero((ys == y).all(1))


def _clusters_in(values: Floats, clusters: Sequence[str] | None) -> int:
    """How many prompts, or clusters of them, have a value in any unit."""
    known = ~np.isnan(values).all(1)
    return int(known.sum()) if clusters is None else len(set(np.asarray(clusters, str)[known]))


def _mean(values: Floats) -> Floats:
    """Over prompts; NaN where a unit has no value."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)
