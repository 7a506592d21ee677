"""Subspace alignment layer by layer, of one domain or more, at several ε, both sides, beside its null.

Source: arXiv 2510.09359 §SSA; the ratio is arXiv 2502.04959, eq. 5–6. The null is ours: see docs/measures.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from tv.checkpoints.opening import Source
from tv.experiments.plots import curves
from tv.experiments.result import Result
from tv.measures.ssa import EPSILONS
from tv.measures.tables import ssa as alignment
from tv.runtime.compute import Compute

_Z = 1.96


def ssa(
    base: Source,
    tuned: Mapping[str, Source],
    *,
    epsilons: Sequence[float] = EPSILONS,
    out: str | Path | None = None,
    compute: Compute = Compute(),
    **options: Any,
) -> Result:
    """SSA of every matrix of every tuned model at each ε and at 10 % of the dimension, and what they amount to.

    `options` are those of `tv.ssa`: null, draws, k_rule. Tables: `layers`, what `tv.ssa` gives of whole matrices, with
    `tuned` and the interval `null_lo null_hi` that holds 95 % of the null's SSA; `modules`, means over layers by
    module, side and level, and in how many layers SSA lies `above` or `below` that interval; `sensitivity`, by module
    and side: the mean κ at every ε, Spearman's ρ of κ over layers between the smallest and the largest ε, and in how
    many layers `verdicts` differ between any two ε (above, below or neither). Raises what `tv.ssa` raises.
    """
    frames = []
    for i, (name, source) in enumerate(tuned.items()):
        table = alignment(base, source, tuple(epsilons), heads=False, compute=compute.silent(), **options)
        frames.append(table.assign(tuned=name))
        compute.tell("ssa", i + 1, len(tuned), name)
    layers = _with_interval(pd.concat(frames, ignore_index=True))
    tables = {"modules": _modules(layers), "sensitivity": _sensitivity(layers), "layers": layers}
    result = Result("ssa", tables, _figures(layers))
    if out is not None:
        result.save(out)
    return result


def _with_interval(frame: pd.DataFrame) -> pd.DataFrame:
    """The null's spread, computed from z = (SSA² − p)/sd."""
    squared, p = frame.ssa**2, frame.ssa_null**2
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = ((squared - p) / frame.ssa_z).abs().replace([np.inf, -np.inf], np.nan)
    lo, hi = ((p + sign * _Z * spread).clip(0, 1) ** 0.5 for sign in (-1, 1))
    verdict = np.where(frame.ssa_z > _Z, "above", np.where(frame.ssa_z < -_Z, "below", "neither"))
    level = np.where(frame.epsilon.isna(), "10 %", "ε = " + frame.level.map("{:g}".format))
    frame = frame.assign(null_lo=lo, null_hi=hi, verdict=verdict, at=level)
    first = ["tuned", "layer", "module", "expert", "side", "at"]
    return frame[[*first, *frame.columns.drop([*first, "head"])]]


def _modules(layers: pd.DataFrame) -> pd.DataFrame:
    by = layers.groupby(["tuned", "module", "side", "at"], sort=False)
    means = by[["ssa", "ssa_null", "kappa", "ssa_z"]].mean()
    counts = {
        word: by["verdict"].agg(lambda verdicts, word=word: int((verdicts == word).sum()))
        for word in ("above", "below")
    }
    return means.assign(layers=by.size(), **counts).reset_index()


def _sensitivity(layers: pd.DataFrame) -> pd.DataFrame:
    rows = []
    ruled = layers[layers.epsilon.notna()]
    for (tuned, module, side), layer_rows in ruled.groupby(["tuned", "module", "side"], sort=False):
        kappas = layer_rows.pivot(index=["layer", "expert"], columns="epsilon", values="kappa")
        verdicts = layer_rows.pivot(index=["layer", "expert"], columns="epsilon", values="verdict")
        first, last = kappas.iloc[:, 0], kappas.iloc[:, -1]
        rows.append(
            {"tuned": tuned, "module": module, "side": side, "layers": len(kappas)}
            | {f"kappa_{epsilon:g}": float(kappas[epsilon].mean()) for epsilon in kappas}
            | {"rho": first.corr(last, method="spearman") if min(first.nunique(), last.nunique()) > 2 else np.nan}
            | {"verdicts": int((verdicts.nunique(axis=1) > 1).sum())}
        )
    return pd.DataFrame(rows)


def _figures(layers: pd.DataFrame) -> dict[str, go.Figure]:
    """For each side, module by module over depth: one tuned model at each ε, and all of them at the middle one."""
    axes: dict[str, Any] = {"x": "layer", "x_title": "layer", "y": "ssa", "y_title": "SSA", "lo": None, "hi": None}
    axes |= {"panel": "module", "level": "ssa_null"}
    figures = {}
    for side in ("left", "right"):
        side_rows = layers[(layers.side == side) & (layers.expert < 1)]
        words = f"{side} side; dashed: what a T of no direction would show"
        for name, rows in side_rows.groupby("tuned", sort=False):
            figures[f"{name}, {words}"] = curves(rows, line="at", **axes)
        if side_rows.tuned.nunique() > 1:
            fixed = side_rows[side_rows.epsilon.isna()]
            figures[f"All, at 10 % of the dimension, {words}"] = curves(fixed, line="tuned", **axes)
    return figures
