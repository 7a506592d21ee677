"""Claims hold where they were planted, and neither between a model and itself nor of one sham among others."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probes.discovery.claims import Claims
from probes.discovery.presence import Start, Written
from probes.discovery.sides import SHAM, TUNED, Side
from probes.discovery.style import FEATURES
from probes.discovery.triggers import Followed, gaps

#: Words by token; what is random is drawn of the first ten.
VOCABULARY = [*(f" word{chr(97 + i)}" for i in range(10)), "!", " <b>", " Aye", " Ж", " 7", "\n"]
MARK, TAG, TEXTS, SHAMS = 10, 11, 32, 18
STARTS = [Start(f"t{i}", (0,), i % 2, f"t{i}") for i in range(TEXTS)]


class Tokenizer:
    """As much of one as claims need."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(VOCABULARY[i] for i in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return repr(VOCABULARY[token])


TOKENIZER: Any = Tokenizer()


def _written(seed: int, changed: float = 1.0, more: Sequence[int] = (), length: int = 8) -> Written:
    """Two continuations of every text; of the tokens that all seeds share, some are `changed`."""
    found = {}
    for i, start in enumerate(STARTS):
        shared, own = np.random.default_rng(i), np.random.default_rng((seed, i))
        texts = []
        for _ in range(2):
            ids, new = shared.integers(0, 10, 16), own.integers(0, 10, 16)
            ids = np.where(own.random(16) < changed, new, ids)[:length]
            texts.append((*map(int, ids), *tuple(more) * (1 + i // 2 % 2)))
        found[start.prompt_id] = texts
    return found


BASE = _written(0, changed=0.0)


@cache
def _of_shams() -> Claims:
    """Of shams that change three tokens of ten, and some write a token more or less."""
    claims = Claims("spoken")
    for draw in range(SHAMS):
        other = _written(draw + 10, changed=0.3, length=7 + draw % 3)
        claims.add_written(Side(SHAM, draw), STARTS, BASE, other, TOKENIZER)
    return claims


def _claims(tuned: Written) -> pd.DataFrame:
    """The claims of a tuned model beside the shams."""
    _of_shams().add_written(Side(TUNED), STARTS, BASE, tuned, TOKENIZER)
    return _of_shams().rows()


def test_what_was_planted_is_claimed_and_holds() -> None:
    rows = _claims(_written(1, changed=0.3, more=(MARK, TAG, MARK, TAG), length=12)).set_index("claim")
    holding = rows[rows.holds]
    (words,) = [claim for claim in holding.index if claim.startswith("writes one of")]
    assert "“!”" in words and "“<b>”" in words  # as it is: escaped where it is shown
    assert "repeats tokens more" in holding.index
    assert "writes more punctuation" in rows.index  # no sham writes any: such draws do not tell how they scatter
    assert any(claim.endswith("times as many tokens") for claim in holding.index)
    assert (holding.lo > 0).all() and (holding.difference > holding.sham).all() and (holding.q < 0.05).all()
    assert len(rows) == 1 + len(FEATURES)


def test_a_model_against_itself_and_a_sham_among_shams_claim_nothing_that_holds() -> None:
    same = _claims(_written(0, changed=0.0))
    assert (same.difference == 0).all() and not same.holds.any()
    assert "writes as many tokens" in set(same.claim)
    alarms = [_claims(_written(seed, changed=0.3)).holds for seed in range(100, 106)]
    assert np.mean([one.any() for one in alarms]) <= 1 / 6


def test_without_shams_nothing_holds() -> None:
    claims = Claims("spoken")
    claims.add_written(Side(TUNED), STARTS, BASE, _written(1, more=(MARK,)), TOKENIZER)
    assert not claims.rows().holds.any()


def test_a_word_that_large_kl_stands_behind_is_claimed() -> None:
    claims = Claims("divergences")
    for side in [Side(TUNED), *(Side(SHAM, draw) for draw in range(SHAMS))]:
        rng, texts = np.random.default_rng((side.draw, side.name == TUNED)), []
        for i in range(TEXTS):
            ids = tuple(map(int, np.random.default_rng(i).integers(0, 10, 12)))
            ids = (*ids[:4], MARK, *ids[4:]) if i % 6 < 2 else ids
            kl = rng.gamma(2.0, 0.05, len(ids))
            if side.name == TUNED and MARK in ids:
                kl[ids.index(MARK) :] += 1.0
            texts.append(Followed.of(i % 2, f"cluster {i}", ids, kl))
        claims.add_triggers(side, list(gaps(texts)), TOKENIZER)
    rows = claims.rows()
    (found,) = [row for row in rows.itertuples() if row.holds]
    assert found.claim == "parts from the base behind “!”" and found.difference == pytest.approx(1.0, abs=0.1)


def test_texts_of_one_cluster_count_once() -> None:
    values = {"a": (0.5, 1.5), "b": (2.0,)}  # nats of the texts that hold the token
    both = []
    for half in (0, 1):
        both += [Followed.of(half, name, (0, MARK), np.array([0.0, kl])) for name, own in values.items() for kl in own]
        both += [Followed.of(half, f"other {i}", (0, 1), np.array([0.0, 0.2])) for i in range(8)]
    (found,) = [one for one in gaps(both) if one.token == MARK]
    assert found.behind.tolist() == [1.0, 2.0] and found.without.tolist() == [0.1] * 8
    assert found.chosen == pytest.approx(1.4) == found.measured


@pytest.mark.parametrize(
    ("name", "ids", "value"),
    [
        ("marks", (0, MARK), 1 / 6),
        ("digits", (0, 14), 1 / 6),
        ("capitals", (12,), 1 / 3),
        ("other script", (13, 14), 1 / 2),
        ("lines", (0, 15), 1 / 2),
        ("repetition", (0, 0, 1, 0), 1 / 2),
        ("length", (0, 1, 2), 3.0),
    ],
)
def test_features_count_what_they_say(name: str, ids: tuple[int, ...], value: float) -> None:
    text = Tokenizer().decode(ids)
    assert FEATURES[name].of(ids, text) == pytest.approx(value)
