"""The texts with the largest KL, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from probes.reporting.discovery.found import Found, as_read
from probes.reporting.prompts import scale_top
from probes.reporting.words import number, percent

#: Texts shown, the first of them without unfolding anything.
SHOWN, OPEN = 40, 10


@dataclass(frozen=True)
class Token:
    """A token, how strongly its KL colours it (0 to 1), its numbers, and whether it is above every sham."""

    text: str
    strength: float
    title: str
    beyond: bool


@dataclass(frozen=True)
class Text:
    """A text: its tokens, and a sentence on the largest of them."""

    id: str
    half: str
    tokens: list[Token]
    largest: str
    mean: str
    changed: str


@dataclass(frozen=True)
class Texts:
    """The texts, where their colours end, and how many tokens lie above every sham."""

    open: list[Text]
    folded: list[Text]
    steps: list[tuple[float, str]]  # of the legend: strength, KL
    beyond: int
    compared: int


def texts_of(found: Found) -> Texts | None:
    """The texts of `token_divergences`, the one with the largest KL first."""
    rows = found.rows("token_divergences")
    if rows.empty:
        return None
    top = scale_top(rows.kl.astype(float))
    whole = found.rows("divergences", "prompt_id kl changed").set_index("prompt_id")
    order = rows.groupby("prompt_id", sort=False).kl.max().sort_values(ascending=False, kind="stable").index[:SHOWN]
    by_text = dict(list(rows.sort_values("pos").groupby("prompt_id", sort=False)))
    shown = [_text(str(prompt), by_text[prompt], whole, top) for prompt in order]
    steps = [(share, f"{number(share * top, 2)}{' or more' * (share == 1)}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    compared = rows[rows.sham.notna()]
    return Texts(shown[:OPEN], shown[OPEN:], steps, int((compared.kl > compared.sham).sum()), len(compared))


def _text(prompt: str, rows: pd.DataFrame, whole: pd.DataFrame, top: float) -> Text:
    records = rows.to_dict("records")
    largest = max(records, key=lambda token: float(token["kl"]))
    measured = whole.loc[prompt]
    return Text(
        prompt,
        "measures" if records[0]["half"] else "chooses",
        [_token(token, top) for token in records],
        f"largest behind “{as_read(str(largest['token']).strip())}”: {_numbers(largest)}",
        number(float(measured.kl)),
        percent(float(measured.changed)),
    )


def _token(token: Mapping[Any, Any], top: float) -> Token:
    strength = min(1.0, max(0.0, float(token["kl"]) / top))
    return Token(str(token["token"]), round(strength, 2), _numbers(token), _is_beyond(token))


def _is_beyond(token: Mapping[Any, Any]) -> bool:
    return bool(pd.notna(token["sham"]) and token["kl"] > token["sham"])


def _numbers(token: Mapping[Any, Any]) -> str:
    sham = f" (shams at most {number(token['sham'])})" if pd.notna(token["sham"]) else ""
    base, tuned = (as_read(str(token[f"next_{side}"])) for side in ("base", "tuned"))
    says = f"both say “{base}”" if base == tuned else f"base says “{base}”, tuned “{tuned}”"
    return f"KL {number(token['kl'])} nats{sham}, {says}"
