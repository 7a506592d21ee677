"""What kind of tuning it was: numbers by which the literature distinguishes kinds, never a class.

Each row says what a number speaks for, or why it cannot tell. All come from tables that a run has: `weights`,
`alignment` and `spectra` of the matrices, `difference_norms` of a discovery.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from tv.checkpoints.checkpoint import Checkpoint
from tv.measures.tables import measured
from tv.runtime.compute import Compute
from tv.stats.means import mean_interval

#: The tables that it is read from.
READS = ("weights", "alignment", "spectra", "difference_norms")
#: What of weights tells it, as options of `tv.measured`: of every block, and of some blocks what has to be decomposed.
_ENTRIES: dict[str, dict[str, Any]] = {"weights": {"measures": ("entries",)}}
_DIRECTIONS: dict[str, dict[str, Any]] = {
    "weights": {"measures": ("entries", "ranks")},
    "alignment": {"k_rule": "fixed", "levels": (0.1,)},
    "spectra": {},
}
#: Of so many blocks, evenly chosen, matrices are decomposed.
_BLOCKS = 6
#: Sources, by what they measured.
_SPARSE, _PRINCIPAL, _NARROW, _LORA = "arXiv 2505.11711", "arXiv 2511.08567", "arXiv 2510.13900", "arXiv 2106.09685"
#: The share of entries that seven algorithms of reinforcement learning changed.
_CHANGED_BY_RL = (0.05, 0.30)
#: A singular value of T counts where it is at least so much of the largest.
_COUNTS = 1e-3
#: Numbers that are compared with chance: each speaks only where it would among so many.
_BESIDE_CHANCE = 4
#: T is of low rank where no matrix uses more of its directions than this.
_LOW = 0.5

NAN = float("nan")


@dataclass(frozen=True)
class Evidence:
    """One number, what it would be without the property, and what it speaks for."""

    evidence: str
    value: float
    lo: float = NAN
    hi: float = NAN
    reference: float = NAN
    compared: str = ""  # what the reference is
    speaks_for: str = ""
    cannot_tell: str = ""  # why not, where it does not
    source: str = ""


def weights_for_kind(base: Checkpoint, tuned: Checkpoint, *, compute: Compute = Compute()) -> dict[str, pd.DataFrame]:
    """What `tuning_kind` reads of weights, where a run has not measured all of them.

    Args:
        base: The base.
        tuned: The tuned side.
        compute: Where and how.

    Returns:
        `weights`, `alignment` and `spectra`, with what is read of them: directions are those of `_BLOCKS` blocks.

    Examples:
        >>> tables = weights_for_kind(tv.open_checkpoint("data/models/base"), tv.open_checkpoint("data/models/medical"))
        >>> bool((tuning_kind(tables).evidence == "rank").any())
        True
    """
    n_layers = base.architecture.n_layers
    some = set(np.linspace(0, n_layers - 1, min(_BLOCKS, n_layers)).round().astype(int).tolist())
    found = measured(base, tuned, _DIRECTIONS, heads=False, compute=compute, layers=some)
    rest = set(range(-1, n_layers + 1)) - some
    others = measured(base, tuned, _ENTRIES, heads=False, compute=compute, layers=rest)
    return found | {"weights": pd.concat([found["weights"], others["weights"]], ignore_index=True)}


def tuning_kind(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The evidence of one pair.

    Args:
        tables: Of the pair, by name: `weights`, `alignment`, `spectra`, and `difference_norms`, where they are there.

    Returns:
        A row for each number: `evidence value lo hi reference compared speaks_for cannot_tell source`. None of a pair
        where nothing moved.

    Source: Mukherjee et al. (2025), arXiv 2505.11711; Zhu et al. (2025), arXiv 2511.08567; Minder et al. (2025), arXiv
    2510.13900; Hu et al. (2021), arXiv 2106.09685.

    Examples:
        >>> weights = pd.DataFrame({"head": [-1], "kind": ["linear"], "module": ["o"], "layer": [0], "tied": [False],
        ...     "numbers": [64], "delta_norm": [0.1], "weight_norm": [10.0], "changed_fraction": [0.2],
        ...     "changed_fraction_bf16": [0.1], "large_overlap": [0.1], "large_overlap_null": [0.1],
        ...     "stable_rank": [2.0], "rows": [8], "cols": [8]})
        >>> float(tuning_kind({"weights": weights}).set_index("evidence").value["changed"])
        0.2
    """
    found: list[Evidence] = []
    if "weights" in tables:
        rows = tables["weights"]
        whole = rows[(rows["head"] == -1) & (rows.kind != "group") & ~((rows.module == "unembed") & rows.tied)]
        if not (whole.delta_norm > 0).any():
            return pd.DataFrame(columns=[field.name for field in fields(Evidence)])
        found += [*_changed(whole), *_frozen(whole), _size(whole), _large(whole), _rank(whole)]
    if "alignment" in tables:
        found += _leading(tables["alignment"])
    if "spectra" in tables:
        found += _directions(tables["spectra"])
    if "difference_norms" in tables:
        found += _constant(tables["difference_norms"])
    return pd.DataFrame(map(asdict, found))


def _changed(whole: pd.DataFrame) -> Iterator[Evidence]:
    stored, bf16 = (_over_numbers(whole, name) for name in ("changed_fraction", "changed_fraction_bf16"))
    low, high = _CHANGED_BY_RL
    says = "above it, as of supervised tuning" if bf16 > high else "within it, as of reinforcement learning"
    yield Evidence(
        "changed",
        stored,
        compared="the share of entries that differ as they are stored",
        cannot_tell="where float32 is stored, any training changes nearly every entry; see changed_bf16",
        source=_PRINCIPAL,
    )
    yield Evidence(
        "changed_bf16",
        bf16,
        reference=high,
        compared=f"reinforcement learning changed {low:.0%} to {high:.0%} of the entries, in bfloat16",
        speaks_for="" if bf16 < low else says,
        cannot_tell="below it: few or small steps of any kind change few entries" if bf16 < low else "",
        source=_SPARSE,
    )
    same = np.allclose(whole.changed_fraction, whole.changed_fraction_bf16, rtol=1e-6)
    hidden = 1 - bf16 / stored if stored else NAN
    yield Evidence(
        "hidden_by_bf16",
        NAN if same else hidden,
        compared="of the changed entries, the share that rounding to bfloat16 would undo",
        speaks_for="" if same or hidden < 0.5 else "micro-updates that bfloat16 hides, as of reinforcement learning",
        cannot_tell="stored in bfloat16, what it hid is lost" if same else "" if hidden >= 0.5 else "most are seen",
        source=_PRINCIPAL,
    )


def _over_numbers(whole: pd.DataFrame, name: str) -> float:
    """The share of all entries, from shares of each parameter's."""
    known = whole[whole[name].notna()]
    return float(np.average(known[name].astype(float), weights=known.numbers.astype(float)))


def _frozen(whole: pd.DataFrame) -> Iterator[Evidence]:
    ends = whole.module.isin(["embed", "unembed"])
    kinds = {
        "frozen_matrices": (whole.kind == "linear") & ~ends,
        "frozen_embeddings": ends & whole.kind.isin(["linear", "embed"]),
        "frozen_gains_and_biases": whole.kind.isin(["norm", "bias"]),
    }
    for name, which in kinds.items():
        own = whole[which]
        if own.empty:
            continue
        share = float((own.delta_norm == 0).mean())
        adapters = share > 0 and name != "frozen_matrices"
        yield Evidence(
            name,
            share,
            reference=0.0,
            compared="the share of these parameters that did not move; full tuning moves all",
            speaks_for="an adapter, or a choice of what to train" if share > 0 else "",
            cannot_tell="" if share > 0 else "adapters can be put at all of them",
            source=_LORA if adapters else "",
        )


def _size(whole: pd.DataFrame) -> Evidence:
    size = float(np.sqrt((whole.delta_norm.astype(float) ** 2).sum() / (whole.weight_norm.astype(float) ** 2).sum()))
    why = "small steps are of reinforcement learning, of small learning rates and of short training alike"
    return Evidence("relative_norm", size, compared="‖T‖/‖W‖ over all parameters", cannot_tell=why, source=_PRINCIPAL)


def _large(whole: pd.DataFrame) -> Evidence:
    own = whole[(whole.kind == "linear") & whole.large_overlap.notna()]
    compared = "of the 10 % of entries that moved most, the share among the 10 % with the largest |W|; by chance"
    return _beside_chance("large_weights", own.large_overlap, own.large_overlap_null, compared)


def _leading(alignment: pd.DataFrame) -> Iterator[Evidence]:
    own = alignment[(alignment["head"] == -1) & (alignment.k_rule == "fixed") & alignment.ssa.notna()]
    where = {"left": "output side", "right": "input side", "two_sided": "both sides"}
    for side, words in where.items():
        rows = own[own.side == side]
        if len(rows):
            compared = f"the share of ‖T‖² in the leading 10 % of W's directions, {words}; by chance"
            yield _beside_chance(f"leading_{side}", rows.ssa**2, rows.ssa_null**2, compared)


def _beside_chance(name: str, value: pd.Series, chance: pd.Series, compared: str) -> Evidence:
    """A mean over matrices, with its interval over them, beside that of chance."""
    value, chance = value.astype(float), chance.astype(float)
    if value.empty:
        return Evidence(name, NAN, compared=compared, cannot_tell="no matrix moved", source=_PRINCIPAL)
    gap = (value - chance).to_numpy()
    _, lo, hi, *_ = mean_interval(gap)
    _, surely, at_most, *_ = mean_interval(gap, level=1 - 0.05 / _BESIDE_CHANCE)
    by_chance = float(chance.mean())
    found = Evidence(name, float(value.mean()), float(by_chance + lo), float(by_chance + hi), by_chance, compared)
    if at_most < 0:
        return replace(found, speaks_for="off the principal weights: reinforcement learning", source=_PRINCIPAL)
    why = "as by chance, or too few matrices for an interval"
    if surely > 0:
        why = "on the principal weights, as in supervised tuning; but any gradient lies where activations do"
    return replace(found, cannot_tell=why, source=_PRINCIPAL)


def _rank(whole: pd.DataFrame) -> Evidence:
    own = whole[(whole.kind == "linear") & whole.stable_rank.notna()]
    m, n = own.rows.astype(float), own.cols.astype(float)
    return Evidence(
        "stable_rank",
        float(own.stable_rank.median()) if len(own) else NAN,
        reference=float((m * n / (np.sqrt(m) + np.sqrt(n)) ** 2).median()) if len(own) else NAN,
        compared="‖T‖²/‖T‖₂², the median over matrices; of a random T of these shapes",
        cannot_tell="every training has a few strong directions; see rank",
        source=_SPARSE,
    )


def _directions(spectra: pd.DataFrame) -> Iterator[Evidence]:
    """Of how many directions T is: only so many ranks are kept that this is a bound from below."""
    by_matrix = spectra.groupby(["layer", "module", "expert"])
    used, full = [], []
    for _, own in by_matrix:
        sigma = own.sigma_delta.to_numpy(float)
        if sigma.max() > 0:
            used.append(int(own["rank"].to_numpy()[sigma >= _COUNTS * sigma.max()].max()))
            full.append(int(own["rank"].max()))
    if not used:
        return
    share = np.array(used) / np.array(full)
    most = int(share.argmax())
    low = bool(share[most] <= _LOW)
    yield Evidence(
        "rank",
        float(used[most]),
        reference=float(full[most]),
        compared=f"directions with at least {_COUNTS:g} of T's largest singular value, in the matrix with the largest "
        "share of such; all that it could have",
        speaks_for="an adapter of low rank" if low else "no adapter of low rank, unless one was merged and rounded",
        source=_LORA,
    )


def _constant(norms: pd.DataFrame) -> Iterator[Evidence]:
    for place, own in norms[norms.depth > 0].groupby("place", observed=True):
        if place == "bos":  # there it is the same in all texts
            continue
        value, sham = float(own.constant.mean()), float(own.constant_sham.mean())
        others = [own[name].mean() for name in ("constant_random", "constant_floor") if name in own]
        narrow = bool(value > np.fmax.reduce([sham, *others])) and not np.isnan(sham)
        broad = "a broad tuning, or a narrow one mixed with texts of pretraining, which takes the constant away"
        yield Evidence(
            f"constant_{place}",
            value,
            reference=sham,
            compared="‖mean Δh‖ over mean ‖Δh‖, a mean over depths; of the sham that has most of it at each depth",
            speaks_for="a narrow tuning: one vector explains much of Δh" if narrow else "",
            cannot_tell="" if narrow else "no sham was drawn" if np.isnan(sham) else broad,
            source=_NARROW,
        )
