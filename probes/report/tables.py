"""The report's own small tables, out of the run's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.attribute import component_name
from probes.link import ACTIVATION_MEASURES, CAUSAL_MEASURES, WEIGHT_MEASURES
from probes.stats import bootstrap_mean
from probes.store import Run

#: Prompts shown token by token: those whose predictions moved most.
PROMPTS_SHOWN = 40


_BEHAVIOUR = ("domain", "metric", "base", "tuned", "change", "lo", "hi", "n")


def behaviour_summary(run: Run, tuned: str) -> pd.DataFrame:
    """Per domain × metric: `base tuned change lo hi n`, the interval a 95 % paired bootstrap over prompts.

    KL has no base value: its `change` is its mean, with that mean's interval.
    """
    if "behaviour" not in run.tables:
        return pd.DataFrame(columns=list(_BEHAVIOUR))
    suite = run.manifest["suite"]
    values = run.df("behaviour", where=[("model", "in", ["base", tuned])])
    values = values.merge(run.df("prompts", columns=["prompt_id", "domain"]), on="prompt_id")
    rows = []
    for (domain, metric), group in values.groupby(["domain", "metric"], sort=False):
        table = group.pivot(index="prompt_id", columns="model", values="value").reindex(columns=["base", tuned])
        before, after = (table[name].to_numpy(float) for name in ("base", tuned))
        paired = after if metric == "kl" else after - before
        change, lo, hi = bootstrap_mean(paired, draws=suite["bootstrap"], seed=suite["seed"])
        base = float(before.mean()) if metric != "kl" else float("nan")
        rows.append((domain, metric, base, float(after.mean()), float(change), float(lo), float(hi), len(table)))
    return pd.DataFrame(rows, columns=list(_BEHAVIOUR))


@dataclass(frozen=True)
class ShownToken:
    """One token, its colour's strength in [0, 1] and what a reader sees on it."""

    text: str
    strength: float
    title: str


@dataclass(frozen=True)
class ShownPrompt:
    """One prompt with its tokens and both models' answers."""

    id: str
    domain: str
    text: str
    target: str
    foil: str
    kl: float
    tokens: list[ShownToken]


def shown_prompts(run: Run, tuned: str) -> list[ShownPrompt]:
    """The prompts whose next-token distributions moved most, tokens coloured by KL(base ‖ tuned)."""
    if "tokens" not in run.tables:
        return []
    tokens = run.df("tokens", where=[("tuned", "==", tuned)])
    prompts = run["prompts"].set_index("prompt_id")
    order = tokens.groupby("prompt_id").kl.mean().sort_values(ascending=False).index[:PROMPTS_SHOWN]
    ceiling = float(np.nanquantile(tokens.kl, 0.95)) or 1.0
    shown = []
    for prompt_id in order:
        row = prompts.loc[prompt_id]
        own = tokens[tokens.prompt_id == prompt_id].sort_values("pos")
        parts = [
            ShownToken(
                t.token,
                min(1.0, t.kl / ceiling),
                f"KL after this token {t.kl:.3f} nats; −log p of it {t.nll_base:.2f} → {t.nll_tuned:.2f}",
            )
            for t in own.itertuples()
        ]
        target, foil = ("" if pd.isna(row[name]) else row[name] for name in ("target", "foil"))
        shown.append(ShownPrompt(prompt_id, row.domain, row.text, target, foil, float(own.kl.mean()), parts))
    return shown


def link_points(run: Run, tuned: str) -> dict[str, Any]:
    """What the link scatter picks from: one point a module or component, every measure a column."""
    if "link" not in run.tables:
        return {"rows": [], "x": [], "y": []}
    link = run.df("link", where=[("tuned", "==", tuned)])
    weight = [m for m in WEIGHT_MEASURES if link[m].notna().any()]
    other = [m for m in (*ACTIVATION_MEASURES, *CAUSAL_MEASURES) if link[m].notna().any()]
    names = [
        row.module if row.kind == "module" else component_name(row.layer, row.component) for row in link.itertuples()
    ]
    rows = [
        {"kind": kind, "layer": layer, "group": module or component, "name": name, **measures}
        for kind, layer, module, component, name, measures in zip(
            link.kind,
            link.layer.tolist(),
            link.module,
            link.component,
            names,
            link[weight + other].astype(object).where(link[weight + other].notna(), None).to_dict("records"),
            strict=True,
        )
    ]
    return {"rows": rows, "x": weight, "y": other}


def correlation_rows(run: Run, tuned: str) -> list[dict[str, Any]]:
    """Rank correlations, the ledger's direct term first, then by size."""
    if "correlations" not in run.tables:
        return []
    found = run.df("correlations", where=[("tuned", "==", tuned)]).dropna(subset="rho")
    first = found.activation_measure.isin(["direct_norm", "direct_share"])
    ordered = found.assign(first=first, size=found.rho.abs()).sort_values(["first", "size"], ascending=False)
    return ordered.to_dict("records")
