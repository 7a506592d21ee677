"""What the tables say, in sentences with their numbers."""

from __future__ import annotations

import math

import pandas as pd

from probes.attribute import component_name
from probes.schemas import ALL_DOMAINS

METRICS = {
    "exact_match": "exact match",
    "logit_diff": "logit difference (target − foil)",
    "target_nll": "negative log-likelihood of the target (nats)",
    "kl": "KL(base ‖ tuned) (nats)",
}


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: three significant digits, an en dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    if value == 0 or 0.001 <= abs(value) < 10_000:
        text = f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
        return text.replace("-", "−")
    return f"{value:.{digits - 1}e}".replace("-", "−")


def interval(mean: float, lo: float, hi: float) -> str:
    """A mean with its 95 % interval."""
    return f"{number(mean)} [{number(lo)}, {number(hi)}]"


def behaviour_sentence(summary: pd.DataFrame) -> str:
    """How behaviour moved, domain by domain, out of `tables.behaviour_summary`."""
    metric = next((m for m in ("exact_match", "logit_diff", "target_nll") if m in set(summary.metric)), None)
    if metric is None:
        return "No prompt of this run has a target, so only the divergence of the two models was measured."
    parts = [
        f"{row.domain} {number(row.base)} → {number(row.tuned)}, a change of {interval(row.change, row.lo, row.hi)} "
        f"over {row.n} prompts"
        for row in summary[summary.metric == metric].itertuples()
    ]
    return f"Behaviour, {METRICS[metric]}, base → tuned: " + "; ".join(parts) + "."


def weights_sentence(link: pd.DataFrame) -> str:
    """Where the weights moved most, and whether rounding could be it."""
    modules = link[link.kind == "module"]
    if modules.empty or modules.relative_norm.max() == 0:
        return "The weights of the blocks did not move at all: both checkpoints hold the same matrices."
    largest = modules.loc[modules.relative_norm.idxmax()]
    by_type = modules.groupby("module").relative_norm.mean().sort_values(ascending=False)
    noise = modules.noise_share.max()
    rounding = (
        f"Rounding to the stored dtype explains at most {100 * noise:.1f} % of any module's move."
        if noise < 0.1
        else f"Caution: rounding to the stored dtype explains up to {100 * noise:.0f} % of a module's move."
    )
    return (
        f"The largest relative move is {largest.module} of layer {largest.layer} (‖T‖/‖W‖ = "
        f"{number(largest.relative_norm)}); "
        f"on average {by_type.index[0]} moved most ({number(by_type.iloc[0])}) and {by_type.index[-1]} least "
        f"({number(by_type.iloc[-1])}). {rounding}"
    )


def alignment_sentence(alignment: pd.DataFrame) -> str:
    """Whether SSA is more than matrix shape; `alignment` holds whole modules of one tuned model."""
    at = alignment[((alignment.epsilon - 0.05).abs() < 1e-9) & (alignment.side == "left")]
    fixed = alignment[alignment.epsilon.isna() & alignment.side.isin(["left", "right"])]
    if fixed.empty or fixed.ssa.max() == 0:
        return "Alignment with the pretrained subspaces is undefined: nothing moved."
    sentences = []
    if len(at):
        gap = (at.ssa - at.ssa_null).abs().mean()
        ceiling = int(at.at_ceiling.sum())
        shape = (
            "what matrix shape alone gives: read nothing into the raw pattern"
            if gap < 0.03
            else "not matrix shape alone"
        )
        sentences.append(
            f"Output-side SSA at ε = 0.05 lies {number(gap)} from its null on average ({ceiling} of {len(at)} "
            f"modules have no "
            f"room above it): {shape}."
        )
    lift = (fixed.ssa**2 / fixed.ssa_null**2).groupby([fixed.module, fixed.side]).mean()
    (top, top_side), (low, low_side) = lift.idxmax(), lift.idxmin()
    sides = {"left": "output", "right": "input"}
    sentences.append(
        f"At 10 % of the dimension, where modules can be compared, T holds {number(lift.max())} times its null "
        f"energy on the "
        f"{sides[top_side]} side of {top} (the most) and {number(lift.min())} times on the {sides[low_side]} side "
        f"of {low} (the least)."
    )
    return " ".join(sentences)


def gates_sentence(link: pd.DataFrame, gated: bool) -> str:
    """How many gates flipped, beside chance."""
    rows = link[(link.kind == "component") & (link.component == "mlp")]
    if rows.empty or rows.flip_rate.isna().all():
        return ""
    top = rows.loc[rows.flip_rate.idxmax()]
    what = "Gates" if gated else "Signs of MLP pre-activations (there is no GLU)"
    return (
        f"{what} that flipped: {number(100 * rows.flip_rate.mean())} % on average, most in layer {top.layer} "
        f"({number(100 * top.flip_rate)} %; unrelated patterns would differ in {number(100 * top.chance_flip_rate)} %)."
    )


def ledger_sentence(link: pd.DataFrame) -> str:
    """What the modules' own weights did, and whether it is new."""
    rows = link[(link.kind == "module") & link.direct_share.notna()]
    if rows.empty:
        return ""
    share = rows.groupby("module").direct_share.mean().sort_values(ascending=False)
    new = rows.groupby("module")[["new_share", "new_share_null", "new_share_10"]].mean()
    excess = (new.new_share_10 - 0.9).sort_values()
    return (
        f"Of the squared change of a module's output its own weights account for most in {share.index[0]} "
        f"({number(100 * share.iloc[0])} %) and least in {share.index[-1]} ({number(100 * share.iloc[-1])} %); "
        f"the rest is "
        f"inherited or interaction. Of what they wrote themselves, {number(100 * (0.9 + excess.iloc[-1]))} % lies "
        f"outside the "
        f"leading 10 % of pretrained output directions for {excess.index[-1]} and "
        f"{number(100 * (0.9 + excess.iloc[0]))} % for "
        f"{excess.index[0]}, where a write with no direction would have 90 %."
    )


def causes_sentence(effects: pd.DataFrame) -> str:
    """Which components carry the change, by each exact method."""
    if effects.empty:
        return ""
    parts = []
    for method, family in effects.groupby("method", sort=False):
        ranked = family.reindex(family.effect.abs().sort_values(ascending=False).index)
        top = ranked.iloc[0]
        clear = int((family.q < 0.05).sum())
        parts.append(
            f"{method}: {component_name(top.layer, top.component)} moves it most, by "
            f"{interval(top.effect, top.lo, top.hi)}; "
            f"{clear} of {len(family)} components have q < 0.05"
        )
    metric, domain = METRICS.get(effects.metric.iloc[0], effects.metric.iloc[0]), effects.domain.iloc[0]
    where = "over all prompts with a target" if domain == ALL_DOMAINS else f"on {domain} prompts"
    return f"Causes of the change in {metric}, {where} — " + "; ".join(parts) + "."
