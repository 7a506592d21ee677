"""The prompts whose predictions moved most: token by token, and what both models say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from probes.reporting.answers import Said, answers_of, compared
from probes.reporting.evidence import rows_of
from probes.reporting.words import number, percent, signed
from probes.store.run import Run

#: Prompts shown per tuned model.
SHOWN = 60


@dataclass(frozen=True)
class ShownToken:
    """A token, whose words it is, how strongly each measure colours it (0 to 1; DLA −1 to 1), and its numbers."""

    text: str
    role: str  # nothing in runs that do not know it
    kl: float
    flips: float
    dla: float
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
    says: tuple[str, str]  # what base and tuned predict where the answer is due
    outcome: str  # gained, lost, or nothing
    tokens: list[ShownToken]
    begins: int | None = None  # the first of the tokens that is no part of the text; None without a target
    answers: tuple[Said, Said] | None = None  # of base and tuned, where the run has them
    likely: Sequence[Likely] = ()  # of every token, where the run has them


#: The likeliest tokens after a place and their probabilities: base, tuned.
Likely: TypeAlias = tuple[Sequence[tuple[str, float]], Sequence[tuple[str, float]]]


def shown_prompts(run: Run, tuned: str) -> list[ShownPrompt]:
    """The prompts of `most_changed`, with their tokens and what both models say."""
    if "tokens" not in run.tables or "prompts" not in run.tables:
        return []
    this_model = [("tuned", "==", tuned)]
    metrics = _metrics(run, tuned)
    mean_kl = _ranked(run, tuned, metrics).kl.iloc[:SHOWN]
    chosen = mean_kl.index.tolist()
    these = [("prompt_id", "in", chosen)]
    where = [*this_model, *these]
    tokens = rows_of(
        run, "tokens", "prompt_id pos token role nll_base nll_tuned kl greedy_token_base greedy_token_tuned", where
    )
    for more in (_token_flips(run, where), _token_dla(run, where)):
        tokens = tokens.merge(more, on=["prompt_id", "pos"], how="left")
    by_prompt = dict(list(tokens.sort_values("pos").groupby("prompt_id")))
    tops = {name: scale_top(tokens[name].abs()) for name in ("kl", "flip_rate", "dla")}
    prompts = run.df("prompts", where=these).set_index("prompt_id")
    answers, likely = answers_of(run, tuned), _likely(run, tuned, these)
    shown = []
    for prompt_id in chosen:
        row = prompts.loc[prompt_id]
        measured = metrics.get(prompt_id, {})
        domain, target, foil, text = (
            "" if pd.isna(row[n]) else str(row[n]) for n in ("domain", "target", "foil", "text")
        )
        records = by_prompt[prompt_id].to_dict("records")
        due = next((token for token in records if token["pos"] == row["answer_pos"]), records[-1])
        says = due["greedy_token_base"], due["greedy_token_tuned"]
        parts = [_token(token, tops) for token in records]
        shown.append(
            ShownPrompt(
                str(prompt_id),
                domain,
                target,
                foil,
                text,
                float(mean_kl[prompt_id]),
                measured,
                says,
                _outcome(measured),
                parts,
                begins=_begins(parts),
                answers=compared(*answers[prompt_id], target) if prompt_id in answers else None,
                likely=[likely[prompt_id, token["pos"]] for token in records] if likely else (),
            )
        )
    return shown


def _begins(tokens: Sequence[ShownToken]) -> int | None:
    """The first of the last tokens that are all the answer's."""
    answer = sum(1 for _ in takewhile(lambda token: token.role == "answer", reversed(tokens)))
    return len(tokens) - answer if 0 < answer < len(tokens) else None


def _likely(run: Run, tuned: str, these: list[Any]) -> dict[tuple[str, int], Likely]:
    """The likeliest next tokens of both models, by prompt and place."""
    if "predictions" not in run.tables:
        return {}
    columns = ["model", "prompt_id", "pos", "rank", "token", "probability"]
    rows = run.df("predictions", columns=columns, where=[*these, ("model", "in", ["base", tuned])])
    rows = rows.sort_values("rank", kind="stable")
    sides: tuple[dict[Any, list[tuple[str, float]]], ...] = {}, {}
    for model, prompt_id, pos, token, probability in zip(
        *(rows[name].astype(object) for name in ("model", "prompt_id", "pos", "token", "probability")), strict=True
    ):
        of = sides[model != "base"].setdefault((prompt_id, pos), [])
        of.append((token, float(f"{probability:.3g}")))
    return {at: (sides[0].get(at, []), sides[1][at]) for at in sides[1]}


def packed_likely(prompts: Sequence[ShownPrompt]) -> dict[str, Any]:
    """What a page holds of the likeliest tokens: `words`, and by prompt and token two lists of word and probability."""
    words: dict[str, int] = {}

    def flat(side: Sequence[tuple[str, float]]) -> Iterator[float]:
        for word, probability in side:
            yield words.setdefault(word, len(words))
            yield probability

    at = [[[list(flat(side)) for side in token] for token in prompt.likely] for prompt in prompts]
    return {"words": list(words), "at": at}


def most_changed(run: Run, tuned: str) -> list[str]:
    """At most `SHOWN` ids: those whose answer was lost, then those with the largest mean KL(base ‖ tuned)."""
    return list(map(str, _ranked(run, tuned, _metrics(run, tuned)).index[:SHOWN]))


def _ranked(run: Run, tuned: str, metrics: Mapping[str, Mapping[str, tuple[float, float]]]) -> pd.DataFrame:
    """`lost` and `kl` of every prompt, in order."""
    rows = run.df("tokens", columns=["prompt_id", "kl"], where=[("tuned", "==", tuned)])
    kl = rows.groupby("prompt_id").kl.mean()
    lost = kl.index.map(lambda prompt_id: _outcome(metrics.get(prompt_id, {})) == "lost")
    ranked = pd.DataFrame({"lost": lost, "kl": kl})
    return ranked.sort_values(["lost", "kl"], ascending=False, kind="stable")


def _token_flips(run: Run, where: list[Any]) -> pd.DataFrame:
    if "gates" not in run.tables:
        return pd.DataFrame({"prompt_id": pd.Series(dtype="str"), "pos": pd.Series(dtype="int32"), "flip_rate": []})
    gates = run.df("gates", columns=["prompt_id", "pos", "flip_rate"], where=where)
    return gates.groupby(["prompt_id", "pos"], as_index=False).flip_rate.mean()


def _token_dla(run: Run, where: list[Any]) -> pd.DataFrame:
    """How much all components together moved target − foil, at each position."""
    whole = [*where, ("head", "==", -1), ("expert", "==", -1)]
    rows = rows_of(run, "changes", "prompt_id pos dla_base dla_tuned", whole)
    moved = rows.assign(dla=(rows.dla_tuned - rows.dla_base).astype(float))
    return moved.groupby(["prompt_id", "pos"]).dla.sum(min_count=1).reset_index()


def _outcome(metrics: Mapping[str, tuple[float, float]]) -> str:
    before, after = metrics.get("exact_match", (np.nan, np.nan))
    return "gained" if after > before else "lost" if after < before else ""


def _metrics(run: Run, tuned: str) -> dict[str, dict[str, tuple[float, float]]]:
    if "behaviour" not in run.tables:
        return {}
    values = run.df("behaviour", where=[("model", "in", ["base", tuned])])
    wide = values.pivot_table(index=["prompt_id", "metric"], columns="model", values="value")
    wide = wide.reindex(columns=["base", tuned])
    metrics: dict[str, dict[str, tuple[float, float]]] = {}
    for (prompt_id, metric), base, after in zip(wide.index, wide["base"], wide[tuned], strict=True):
        metrics.setdefault(str(prompt_id), {})[str(metric)] = float(base), float(after)
    return metrics


def scale_top(values: pd.Series) -> float:
    """Where a colour scale ends: nearly all of the values lie below."""
    known = values.dropna()
    return (float(known.quantile(0.98)) or float(known.max()) or 1.0) if len(known) else 1.0


def _token(token: dict[Any, Any], tops: Mapping[str, float]) -> ShownToken:
    kl, flips, dla = (_strength(token[name], tops[name]) for name in ("kl", "flip_rate", "dla"))
    says = [token[f"greedy_token_{side}"] for side in ("base", "tuned")]
    after = f"both say “{says[0]}”" if says[0] == says[1] else f"base says “{says[0]}”, tuned “{says[1]}”"
    title = (
        f"after it {after}; KL {number(token['kl'])} nats; gates flipped {percent(token['flip_rate'])}; DLA change "
        f"{signed(token['dla'])}; −log p of this token {number(token['nll_base'])} → {number(token['nll_tuned'])}"
    )
    role = "" if pd.isna(token["role"]) else str(token["role"])
    return ShownToken(str(token["token"]), role, kl, flips, dla, f"{role}: {title}" if role else title)


def _strength(value: float, top: float) -> float:
    return 0.0 if pd.isna(value) else min(1.0, max(-1.0, value / top))
