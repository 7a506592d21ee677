"""Prompts that the two models answer differently: answers gained and lost, and first choices that differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from probes.reporting.answers import answers_of
from probes.reporting.evidence import rows_of
from probes.store.run import Run
from probes.store.verdict import Example
from tv.stats.proportions import share_interval

#: Examples of each kind.
SHOWN = 3
#: Metrics that say whether an answer is right, the first that was measured.
RIGHT = ("exact_match", "final_answer")
#: Tokens of an answer that are shown at most.
_TOKENS = 24


def examples_of(run: Run, tuned: str) -> list[Example]:
    """At most `SHOWN` answers gained and as many lost; where no answer is right or wrong, first choices that differ.

    Those come first whose NLL per token moved most (without targets, whose KL is largest), one of each cluster before a
    second of any.
    """
    if not {"tokens", "prompts"} <= set(run.tables):
        return []
    prompts = run.df("prompts").set_index("prompt_id")
    turned = _turned(run, tuned)
    if turned is None:
        due = first_choices(run, tuned)
        turned = due[due.differs].rename(columns={"kl": "size"}).assign(outcome="differs")
    if turned.empty:
        return []
    turned = turned.assign(cluster=prompts.cluster.reindex(turned.index).fillna(pd.Series(turned.index, turned.index)))
    turned = turned.sort_values("size", ascending=False, kind="stable")
    again = turned.groupby(["outcome", "cluster"]).cumcount()
    ordered = turned.iloc[np.argsort(again, kind="stable")]
    chosen = ordered.groupby("outcome", sort=True).head(SHOWN).sort_values("outcome", kind="stable")
    said = _answers(run, tuned, prompts.loc[chosen.index])
    found = []
    for prompt_id, row in chosen.iterrows():
        prompt = prompts.loc[prompt_id]
        domain, text, target = ("" if pd.isna(prompt[name]) else str(prompt[name]) for name in _TEXTS)
        found.append(Example(row.outcome, str(prompt_id), domain, text, target.strip(), *said[prompt_id]))
    return found


_TEXTS = ("domain", "text", "target")


def first_choices(run: Run, tuned: str) -> pd.DataFrame:
    """By prompt: `domain cluster differs kl` where the answer is due: whether the models' first choices differ."""
    prompts = rows_of(run, "prompts", "prompt_id domain cluster answer_pos", [])
    columns = "prompt_id pos kl greedy_base greedy_tuned"
    tokens = rows_of(run, "tokens", columns, [("tuned", "==", tuned), ("pos", "in", _places(prompts))])
    due = tokens.merge(prompts, on="prompt_id")
    due = due[due.pos == due.answer_pos].set_index("prompt_id")
    cluster = due.cluster.fillna(pd.Series(due.index, due.index)).astype(str)
    differs = (due.greedy_base != due.greedy_tuned).astype(bool)
    return due.assign(domain=due.domain.fillna(""), cluster=cluster, differs=differs)[_DUE]


_DUE = ["domain", "cluster", "differs", "kl"]


def shares_that_differ(due: pd.DataFrame) -> pd.DataFrame:
    """`domain n units differ share lo hi` of `first_choices`, the largest share first."""
    rows = []
    for domain, part in due.groupby("domain", sort=False):
        share, lo, hi = share_interval(part.differs.astype(float), list(part.cluster))
        counts = {"n": len(part), "units": part.cluster.nunique(), "differ": int(part.differs.sum())}
        rows.append({"domain": str(domain), **counts, "share": share, "lo": lo, "hi": hi})
    columns = ["domain", "n", "units", "differ", "share", "lo", "hi"]
    return pd.DataFrame(rows, columns=columns).sort_values("share", ascending=False, kind="stable", ignore_index=True)


def _places(prompts: pd.DataFrame) -> list[int]:
    return sorted(set(prompts.answer_pos.dropna().astype(int)))


def _turned(run: Run, tuned: str) -> pd.DataFrame | None:
    """By prompt: `outcome` of an answer that was gained or lost, and how far the NLL moved; None without answers."""
    values = rows_of(run, "behaviour", "prompt_id model metric value", [("model", "in", ["base", tuned])])
    right = next((name for name in RIGHT if (values.metric == name).any()), None)
    if right is None:
        return None
    wide = _side_by_side(values, right, tuned)
    turned = wide[wide["base"] != wide[tuned]].dropna()
    nll = _side_by_side(values, "target_nll_per_token", tuned)
    size = (nll[tuned] - nll["base"]).abs().reindex(turned.index).fillna(0.0)
    return pd.DataFrame({"outcome": np.where(turned[tuned] > turned["base"], "gained", "lost"), "size": size})


def _side_by_side(values: pd.DataFrame, metric: str, tuned: str) -> pd.DataFrame:
    rows = values[values.metric == metric].pivot(index="prompt_id", columns="model", values="value")
    return rows.reindex(columns=["base", tuned])


def _answers(run: Run, tuned: str, prompts: pd.DataFrame) -> Mapping[Any, tuple[str, str]]:
    """What each model writes; where the run has no such text, its first choices until one is another token."""
    where = [("tuned", "==", tuned), ("prompt_id", "in", list(prompts.index))]
    columns = "prompt_id pos token_id role greedy_base greedy_tuned greedy_token_base greedy_token_tuned"
    tokens = rows_of(run, "tokens", columns, where).sort_values("pos")
    told: dict[Any, tuple[str, str]] = {
        prompt: (base[0], own[0]) for prompt, (base, own) in answers_of(run, tuned).items() if base[0] != own[0]
    }
    for prompt_id, rows in tokens.groupby("prompt_id", sort=False):
        if prompt_id in told:
            continue
        answer = rows[rows.pos >= prompts.answer_pos[prompt_id]]
        asked = int((answer.role == "answer").sum())  # what follows the answer is no part of it
        answer = answer.head(min(asked, _TOKENS) if asked else _TOKENS)
        told[prompt_id] = (_said(answer, "base"), _said(answer, "tuned"))
    return {prompt_id: told.get(prompt_id, ("", "")) for prompt_id in prompts.index}


def _said(answer: pd.DataFrame, side: str) -> str:
    kept = 1 + int((answer[f"greedy_{side}"] == answer.token_id.shift(-1)).cumprod().sum())
    return "".join(answer[f"greedy_token_{side}"].head(kept).astype(str)).strip()
