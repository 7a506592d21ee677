"""Which matrices and other parameters moved, how far, and whether rounding could explain it: in sentences."""

from __future__ import annotations

import pandas as pd

from probes.reporting.words import listing, number, percent
from tv.architecture.anatomy import MODULES


def weights_sentences(weights: pd.DataFrame, n_layers: int) -> list[str]:
    """What was trained, where the weights moved most, and whether rounding could explain it."""
    every = matrices(weights)
    if every.empty:
        return []
    rows = moved(weights)
    if rows.empty:
        others = weights[moves(weights)]
        if others.empty:
            return ["No matrix moved: both checkpoints hold the same weights."]
        return [f"No matrix{' of the language model' * bool(groups(others))} moved, only {_largest(others, n_layers)}."]
    top = rows.loc[rows.relative_norm.idxmax()]
    blocks = rows[(rows.layer >= 0) & (rows.layer < n_layers)]
    sentences = [] if len(rows) == len(every) else [_trained(every)]
    sentences.append(
        f"The largest relative move is {place(top, n_layers)} (‖T‖/‖W‖ = {number(top.relative_norm)}), the median "
        f"over {len(rows)} matrices{' that moved' if sentences else ''} {number(rows.relative_norm.median())}."
    )
    besides = weights[moves(weights) & is_other(weights)]
    if len(besides):
        sentences.append(f"Besides the matrices, these moved: {_largest(besides, n_layers)}.")
    if len(blocks):
        kinds = blocks.groupby("module").relative_norm.mean().sort_values(ascending=False)
        depth = blocks.groupby("layer").relative_norm.mean()
        sentences.append(
            f"By module, {kinds.index[0]} moved most ({number(kinds.iloc[0])} on average) and {kinds.index[-1]} least "
            f"({number(kinds.iloc[-1])}); by depth, layer {depth.idxmax()} most ({number(depth.max())}) and layer "
            f"{depth.idxmin()} least ({number(depth.min())})."
        )
    noise = rows.noise_share.max()
    if pd.notna(noise):
        sentences.append(
            f"Rounding to the stored dtype accounts for at most {percent(min(noise, 1))} of any matrix's T."
        )
    return sentences


def matrices(weights: pd.DataFrame) -> pd.DataFrame:
    """The rows of matrices: no norm's gain, no bias, no other parameter, no group."""
    return weights[~weights.module.astype(str).str.endswith(("norm", "bias")) & ~is_other(weights)]


def is_other(weights: pd.DataFrame) -> pd.Series:
    """Which rows are of a parameter that is no module, or of a group of parameters."""
    kind = weights["kind"] if "kind" in weights else pd.Series("", weights.index)
    return kind.isin(("vector", "group"))


def groups(weights: pd.DataFrame) -> list[str]:
    """The groups among the rows, by name: parts beside the language model, or outside the forward pass."""
    return list(weights.module[weights.kind == "group"]) if "kind" in weights else []


def moves(weights: pd.DataFrame) -> pd.Series:
    """Which rows have a T that is not 0; of a W that is 0, as a new bias is, the relative norm cannot tell."""
    return weights["delta_norm" if "delta_norm" in weights else "relative_norm"] > 0


def moved(weights: pd.DataFrame) -> pd.DataFrame:
    """The rows of matrices whose T is not 0."""
    rows = matrices(weights)
    return rows[moves(rows)]


def place(row: pd.Series, n_layers: int) -> str:
    """A matrix, or a gain, as people name it: its module, and its layer where it is in a block."""
    expert = f"expert {row.expert}'s " if row.get("expert", -1) >= 0 else ""
    return f"{expert}{row.module} of layer {row.layer}" if 0 <= row.layer < n_layers else str(row.module)


def _largest(rows: pd.DataFrame, n_layers: int) -> str:
    """What is no matrix, by name, and how far the one moved that moved most."""
    top = rows.loc[rows.relative_norm.idxmax()]
    most = f", most {place(top, n_layers)}" * (len(rows) > 1)
    return f"{_named(rows)}{most} (‖T‖/‖W‖ = {number(top.relative_norm)})"


def _named(rows: pd.DataFrame) -> str:
    """What is no matrix, by name, with the number of its rows where there are several; gains and biases as one."""
    others = is_other(rows)
    counts = rows.module[others].astype(str).value_counts(sort=False)
    named = [f"{name} ({n} layers)" if n > 1 else name for name, n in counts.items()]
    if len(rest := rows[~others]):
        named.append(f"gains of norms or biases ({len(rest)})")
    return listing(named)


def _trained(every: pd.DataFrame) -> str:
    """By module: all of its layers, some of them, or none."""
    of_experts = set(every.module[every.expert >= 0]) if "expert" in every else set()
    order = {name: i for i, name in enumerate(MODULES)}
    counts = moves(every).groupby(every.module.astype(str)).agg(["sum", "size"])
    counts = counts.loc[sorted(counts.index, key=lambda name: order.get(name, len(order)))]
    part = {
        name: "{} ({} of {} matrices)" if name in of_experts else "{} (in {} of {} layers)" for name in counts.index
    }
    trained = [
        str(name) if n == of else part[name].format(name, n, of)
        for name, n, of in zip(counts.index, counts["sum"], counts["size"], strict=True)
        if n
    ]
    still = [str(name) for name in counts.index[counts["sum"] == 0]]
    text = f"Trained: {', '.join(trained)}"
    return f"{text}; not moved: {', '.join(still)}." if still else f"{text}; no other matrix moved."
