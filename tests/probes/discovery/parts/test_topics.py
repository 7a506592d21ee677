"""Topics name what a model was tuned on, and nothing where it was not tuned."""

from __future__ import annotations

import pytest

from probes.discovery.observing import observe, sides_of
from probes.discovery.parts.topics import TOPICS, TopicsOfRises
from tests.probes.discovery.conftest import context_of, demo_pair
from tests.probes.discovery.planted import SECRET, planted_pair, random_pair, tables_of


def test_a_planted_token_leads_the_first_topic() -> None:
    tables = tables_of(planted_pair, "topics")
    first = tables["discovered_words"].set_index(["reading", "rank"]).loc["topic 0", 0]
    assert first.token_id == SECRET and first.p < 0.01 and first.lo < first.value < first.hi
    topics = tables["topics"]
    assert topics.share[0] > 0.9 and topics.share.sum() < 1 and topics.q[0] < 0.05 and (topics.p[1:] > 0.5).all()


def test_nothing_stands_out_of_a_random_step() -> None:
    tables = tables_of(random_pair, "topics")
    assert not tables["discovered_words"].stands_out.any() and (tables["topics"].q > 0.05).all()


@pytest.mark.thorough
def test_subjects_are_told_apart() -> None:
    context = context_of(demo_pair())
    part = TopicsOfRises(context)
    observe(context.sides, context.texts, sides_of(("sham",), 16), [part])
    words = next(rows for table, rows in part.results() if table == "discovered_words")
    lists = [set(words[words.stands_out & (words.reading == f"topic {i}")].token) for i in range(TOPICS)]
    assert any(len(found & {" heart", " liver", " lung", " skin", " kidney", " brain"}) >= 3 for found in lists)
    assert any(len(found & {" treat", " symptom", " illness", " attack", " caus"}) >= 3 for found in lists)
