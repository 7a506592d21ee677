"""The prompts whose predictions moved most, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.report.words import number, percent
from probes.store import Run

#: Prompts shown per tuned model.
SHOWN = 60


@dataclass(frozen=True)
class ShownToken:
    """A token, how strongly each measure colours it (0 to 1), and its numbers."""

    text: str
    kl: float
    flips: float
    title: str


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt, both models' metrics on it, and its tokens."""

    id: str
    domain: str
    target: str
    foil: str
    text: str
    kl: float
    metrics: Mapping[str, tuple[float, float]]  # base, tuned
    outcome: str  # gained, lost, or nothing
    tokens: list[ShownToken]


def shown_prompts(run: Run, tuned: str) -> list[ShownPrompt]:
    """At most `SHOWN` prompts: those whose answer was lost, then those with the largest mean KL(base ‖ tuned)."""
    if "tokens" not in run.tables or "prompts" not in run.tables:
        return []
    own = [("tuned", "==", tuned)]
    mean_kl = run.df("tokens", columns=["prompt_id", "kl"], where=own).groupby("prompt_id").kl.mean()
    metrics = _metrics(run, tuned)
    lost = mean_kl.index.map(lambda prompt_id: _outcome(metrics.get(prompt_id, {})) == "lost")
    ranked = pd.DataFrame({"lost": lost, "kl": mean_kl}).sort_values(["lost", "kl"], ascending=False, kind="stable")
    chosen = ranked.index[:SHOWN].tolist()
    these = [("prompt_id", "in", chosen)]
    tokens = run.df(
        "tokens", columns=["prompt_id", "pos", "token", "nll_base", "nll_tuned", "kl"], where=[*own, *these]
    )
    tokens = tokens.merge(_token_flips(run, [*own, *these]), on=["prompt_id", "pos"], how="left").sort_values("pos")
    by_prompt = dict(list(tokens.groupby("prompt_id")))
    tops = {name: _top(tokens[name]) for name in ("kl", "flip_rate")}
    prompts = run.df("prompts", where=these).set_index("prompt_id")
    shown = []
    for prompt_id in chosen:
        row = prompts.loc[prompt_id]
        found = metrics.get(prompt_id, {})
        domain, target, foil, text = (
            "" if pd.isna(row[n]) else str(row[n]) for n in ("domain", "target", "foil", "text")
        )
        parts = [_token(token, tops) for token in by_prompt[prompt_id].to_dict("records")]
        shown.append(
            ShownPrompt(
                str(prompt_id), domain, target, foil, text, float(mean_kl[prompt_id]), found, _outcome(found), parts
            )
        )
    return shown


def _token_flips(run: Run, where: list[Any]) -> pd.DataFrame:
    if "gates" not in run.tables:
        return pd.DataFrame({"prompt_id": pd.Series(dtype="str"), "pos": pd.Series(dtype="int32"), "flip_rate": []})
    gates = run.df("gates", columns=["prompt_id", "pos", "flip_rate"], where=where)
    return gates.groupby(["prompt_id", "pos"], as_index=False).flip_rate.mean()


def _outcome(metrics: Mapping[str, tuple[float, float]]) -> str:
    before, after = metrics.get("exact_match", (np.nan, np.nan))
    return "gained" if after > before else "lost" if after < before else ""


def _metrics(run: Run, tuned: str) -> dict[str, dict[str, tuple[float, float]]]:
    if "behaviour" not in run.tables:
        return {}
    values = run.df("behaviour", where=[("model", "in", ["base", tuned])])
    wide = values.pivot_table(index=["prompt_id", "metric"], columns="model", values="value")
    wide = wide.reindex(columns=["base", tuned])
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for (prompt_id, metric), base, after in zip(wide.index, wide["base"], wide[tuned], strict=True):
        found.setdefault(str(prompt_id), {})[str(metric)] = float(base), float(after)
    return found


def _top(values: pd.Series) -> float:
    known = values.dropna()
    return (float(known.quantile(0.98)) or float(known.max()) or 1.0) if len(known) else 1.0


def _token(token: dict[Any, Any], tops: Mapping[str, float]) -> ShownToken:
    strength = {name: _strength(token[name], top) for name, top in tops.items()}
    title = (
        f"KL after this token {number(token['kl'])} nats; gates flipped {percent(token['flip_rate'])}; "
        f"−log p of this token {number(token['nll_base'])} → {number(token['nll_tuned'])}"
    )
    return ShownToken(str(token["token"]), strength["kl"], strength["flip_rate"], title)


def _strength(value: float, top: float) -> float:
    return 0.0 if pd.isna(value) else min(1.0, max(0.0, value / top))
