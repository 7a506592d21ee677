"""The report of a discovery: its sentences say what its tables say, and what models write is text."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probes
from probes.cli.discover import print_found
from probes.discovery.part import PARTS
from probes.reporting.chapter import chapters_of
from probes.reporting.discovery.claims import claim_table, kind_table, topic_table
from probes.reporting.discovery.curves import HEIGHT, TOP, curves_of
from probes.reporting.discovery.found import Found, unit_of
from probes.reporting.discovery.readings import read_parts
from probes.reporting.discovery.samples import samples_of
from probes.reporting.discovery.sentences import three_sentences
from probes.reporting.discovery.states import component_table, moved_table, steering_table
from probes.reporting.discovery.texts import texts_of
from probes.reporting.report import report_page
from probes.store.schemas import SCHEMAS
from tests.pages import unpacked

HOSTILE = "<script>alert(1)</script>"
SECTIONS = (
    *("found", "words", "samples", "divergences", "lens-words", "difference", "components", "moved", "steering"),
    *("t-words", "excitation"),
)


def _list(part: str, reading: str, values: list[float], sham: float, q: float, **columns: Any) -> list[dict[str, Any]]:
    """A list of words, the r-th called w<r>; `sham` is the largest of all nulls."""
    nulls = {"noise": sham / 2, "sham": sham, "floor": 0.0}
    return [
        {"part": part, "reading": reading, "rank": i, "token_id": i, "token": f" w{i}", "value": value, "chosen": value}
        | {"lo": value - 0.5, "hi": value + 0.5, "p": q / 2, "q": q, "rank_p": 1 / 21}
        | {**nulls, "stands_out": value > sham and q < 0.05, **columns}
        for i, value in enumerate(values)
    ]


def _tables(words: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    place = {"place": "first", "depth": 1}
    texts = [
        {
            "prompt_id": "a",
            "pos": i,
            "token": token,
            "kl": kl,
            "sham": sham,
            "half": 1,
            "next_base": "x",
            "next_tuned": "y",
        }
        for i, (token, kl, sham) in enumerate([(HOSTILE, 0.1, 0.2), (" two", 3.0, 1.0), (" three", 0.2, np.nan)])
    ]
    written = {"base": (" one fish", " one"), "tuned": (f" one {HOSTILE}", " one")}
    samples = [
        {"part": "spoken", "reading": "amplified 1", "prompt_id": "a", "pos": 1, "model": model, "draw": 0}
        | {"continuation": continuation, "alike": alike, "n_tokens": 3, "ended": model == "base"}
        for model, (continuation, alike) in written.items()
    ]
    lens = {**place, "variant": "plain", "reader": "base", "token_id": 0, "token": HOSTILE, "z": 3.0, "rank": 0}
    direction = {"layer": 0, "module": "o", "expert": -1, "use": "writes", "singular": 0, "share": 0.5, "rank": 0}
    excited = {"layer": 0, "module": "q", "own": f"domain {HOSTILE}", "excess": 0.4, "lo": 0.1, "hi": 0.5, "q": 0.01}
    component = {"depth": 1, "method": "pca", "component": 0, "rank": 0}
    moved = {"prompt_id": "a", "pos": 1, "token": HOSTILE, "depth": 1}
    frames = {
        "discovered_texts": [{"prompt_id": "a", "half": 1, "in_null": True}, {"prompt_id": "b", "half": 0}],
        "activation_components": [{**component, "share": 0.4, "lo": 0.3, "hi": 0.5, "share_sham": 0.2}],
        "component_words": [{**component, "token": HOSTILE}],
        "component_places": [{**component, "token": " two"}],
        "activation_map": [{**moved, "size": 0.5, "size_sham": 0.2}, {**moved, "size": 0.9}],
        "steering": [{"place": HOSTILE, "depth": 1, "length": 0.7, "kl": 0.5, "lo": 0.4, "hi": 0.6, "kl_sham": 0.55}],
        "direction_excitation": [{**excited, "stands_out": True}, {**excited, "stands_out": False, "q": 0.6}],
        "discovered_words": words,
        "token_divergences": texts,
        "divergences": [{"prompt_id": "a", "half": 1, "kl": 1.1, "changed": 0.5}, {"prompt_id": "b", "half": 0}],
        "samples": samples,
        "amplified": [{"reading": "amplified 1", "alpha": 1.0, "kl": 4.0, "lo": 3.0, "hi": 5.0, "sham": 2.0}],
        "lens_words": [lens],
        "difference_norms": [{**place, "constant": 0.5, "constant_sham": 0.2, "size": 0.1}],
        "direction_words": [{**direction, "token": HOSTILE, "z": 4.0}],
        "prompts": [{"prompt_id": "a", "text": HOSTILE}],
    }
    own = {name: pd.DataFrame(rows) for name, rows in frames.items()}
    return {
        name: frame.reindex(columns=list(SCHEMAS[name].names)).assign(
            **({"tuned": "m"} if "tuned" in SCHEMAS[name].names else {})
        )
        for name, frame in own.items()
    }


class _Made(probes.Run):
    """A run of these tables."""

    made: dict[str, pd.DataFrame]

    def df(self, name: str, columns: Any = None, where: Any = None) -> pd.DataFrame:
        rows = self.made[name]
        for column, operator, value in where or ():
            assert operator in ("==", "in")
            rows = rows[rows[column].isin(value if operator == "in" else [value])]
        return rows if columns is None else rows[list(columns)]


def _run(words: list[dict[str, Any]], *more: str, draws: int = 20) -> probes.Run:
    tables = _tables(words)
    run = _Made(
        Path("nowhere"),
        {
            "suite": {"name": HOSTILE, "tuned": {"m": "m"}, "discover": {"draws": draws}},
            "architecture": {"name": "Model", "n_layers": 1},
            **{"seed": 0, "versions": {}, "notes": {}, "n_prompts": 2, "n_tokens": 6},
            "tables": {name: {} for name in (*tables, *more)},
        },
    )
    run.made = tables | {name: pd.DataFrame(columns=list(SCHEMAS[name].names)) for name in more}
    return run


FOUND = [
    *_list("token_shifts", "mean", [3.0, 2.0], 1.0, 0.001, token=HOSTILE),
    *_list("token_shifts", "top", [0.5], 0.8, 0.7),
    *_list("patchscope", "first base", [1.0], 2.0, 0.5),
]


def _said(run: probes.Run) -> str:
    return "\n".join(f"{one.label}: {' '.join(one.sentences)}" for one in three_sentences(Found(run, "m")))


def test_the_sentences_say_what_was_found_and_what_was_not() -> None:
    said = _said(_run(FOUND))
    assert "2 tokens stand out of what vectors that have learnt nothing reach, in 1 of 3 lists" in said
    assert "the first reaches 3.00 logits, random vectors at most 0.500, shams at most 1.00; q = 0.001" in said
    assert "No word stands out among tokens that a model names when mean Δh is put into it." in said
    assert "2 texts, of each at most 32 tokens: 1 of them chose the words and the other 1 measured them" in said
    assert "and the base in another precision, on 1 of the texts." in said
    assert "of the 2 entries that do at most 5 % are expected to be false" in said


def test_the_command_prints_the_sentences_and_the_lists_that_stand_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_found(Found(_run([*FOUND, *_list("triggers", "behind it", [2.0], 1.0, 0.01, token="\x1b[2J")]), "m"))
    said = capsys.readouterr().out
    assert [line.strip() for line in said.splitlines() if line.startswith(("F", "N", "H"))] == [
        *("Found:", "Not found:", "How far to trust it:")
    ]
    listed = said.split("lists of words, and how far")[1]
    assert "mean" in listed and "behind it" in listed and "rank_biased" not in listed and "first base" not in listed
    assert "\x1b" not in said


def test_where_nothing_stands_out_the_sentences_say_so() -> None:
    said = _said(_run(_list("token_shifts", "mean", [3.0], 4.0, 0.6)))
    assert "Found: Nothing stands out: in none of 1 lists" in said and "false alarms" not in said


def test_too_few_draws_are_no_evidence_of_nothing() -> None:
    few = _list("spoken", "as it is", [0.8], 0.5, 0.3, rank_p=1 / 9)
    many = [*_list("triggers", "behind it", [0.8], 1.5, 0.3, rank_p=2 / 21), *few]
    said = _said(_run(many, draws=10))
    assert "Cannot tell: some words that the tuned model writes after the texts (8 draws) are above every draw" in said
    assert "With 10 draws no q can be below 0.05" in said
    assert "No word stands out among tokens of the texts behind which the predictions part." in said


def test_words_that_stand_out_come_first_with_the_nulls_where_they_end() -> None:
    rows = _list("token_shifts", "mean", [4.0, 3.0, 2.0], 1.0, 0.001)
    rows[0]["stands_out"] = False
    (part, other) = read_parts(Found(_run([*FOUND[3:], *rows]), "m"))
    assert part.name == "token_shifts" and [one.name for one in other.quiet] == ["first base"]
    (reading,) = part.standing
    assert [word.value for word in reading.words] == ["3.00", "2.00", "4.00"] and reading.n_standing == 2
    assert reading.words[0].bar == pytest.approx(100 * 3 / 4.5, abs=0.1)  # the widest interval fills the column
    assert reading.words[0].marks["sham"] == pytest.approx(100 / 4.5, abs=0.1)


def test_samples_are_marked_where_they_part_and_tokens_where_no_sham_reaches() -> None:
    found = Found(_run(FOUND), "m")
    (group,) = samples_of(found)
    (sample,) = group.open
    assert (sample.base.alike, sample.base.first, sample.tuned.first) == (" one", " fish", f" {HOSTILE}")
    assert (sample.base.end, sample.tuned.end) == ("end of text", "cut after 3 tokens")
    assert sample.text == f"{HOSTILE} two"  # as far as it was read
    assert "base + 2 × (tuned − base)" in group.note and "4.00 [3.00, 5.00] nats" in group.note
    assert group.writer == "amplified"
    texts = texts_of(found)
    assert texts is not None and (texts.beyond, texts.compared) == (1, 2)
    assert [token.beyond for token in texts.open[0].tokens] == [False, True, False]
    assert "largest behind “two”: KL 3.00 nats (shams at most 1.00), base says “x”, tuned “y”" in texts.open[0].largest


def test_claims_topics_and_states_are_shown_where_a_run_has_them() -> None:
    claim = {"holds": True, "claim": HOSTILE, "n": 9, "value_base": 0.1, "value_tuned": 0.5, "difference": 0.4}
    topic = {"topic": 0, "words": " dose\n drug", "share": 0.2, "weight": 2.0, "weight_sham": 1.0, "weight_random": 0.5}
    evidence = {"evidence": "stable rank", "value": 3.0, "reference": 40.0, "compared": "T; random", "speaks_for": None}
    made = {
        "claims": [claim | {"lo": 0.2, "hi": 0.6, "sham": 0.1, "q": 0.01}],
        "topics": [topic | {"weight_floor": 0.0, "lo": 1.0, "hi": 3.0, "q": 0.02}],
        "tuning_kind": [evidence | {"lo": np.nan, "hi": np.nan, "cannot_tell": "too few matrices", "source": None}],
        "activation_cka": [{"depth": i, "cka": 0.9 - i / 10, "cka_sham": 0.95, "cosine": 0.8} for i in range(3)],
    }

    class Has(Found):
        def rows(self, table: str, columns: str = "") -> pd.DataFrame:
            return pd.DataFrame(made[table]) if table in made else super().rows(table, columns)

    found = Has(_run(FOUND), "m")
    claims, topics, kind = claim_table(found), topic_table(found), kind_table(found)
    assert claims is not None and topics is not None and kind is not None
    assert claims.rows[0][:6] == ["yes", HOSTILE, "9", "0.100", "0.500", "0.400 [0.200, 0.600]"]
    assert topics.rows[0][1:6] == [" dose\\n drug", "20 %", "2.00 [1.00, 3.00]", "0.500", "1.00"]
    assert kind.rows[0][4] == "cannot tell: too few matrices"
    alike = next(curves for curves in curves_of(found) if curves.title == "How alike are the states?")
    ys = [y for _, y, _ in alike.charts[0].lines[0].dots]
    assert ys == sorted(ys) and max(ys) == TOP + HEIGHT  # the least alike lies at the bottom of the plot
    page = report_page(found.run, [replace(chapters_of(found.run)[0], found=found)])
    assert "1 of 1 claims hold on texts that did not suggest them" in page and HOSTILE not in page


def test_components_moved_tokens_and_steering_stand_beside_shams() -> None:
    found = Found(_run(FOUND), "m")
    components, moved, steering = component_table(found), moved_table(found), steering_table(found)
    assert components is not None and moved is not None and steering is not None
    assert components.rows[0][3:5] == ["0.400 [0.300, 0.500]", "0.200"]
    assert components.rows[0][-2:] == [f"“{HOSTILE}”", "“ two”"]
    assert moved.rows[0][:3] == ["1", "0.700", "0.200"]
    assert moved.rows[0][-1] == f"“{HOSTILE}” 0.900, “{HOSTILE}” 0.500 (shams at most 0.200)"
    assert steering.rows[0][5:7] == ["0.500 [0.400, 0.600]", "0.550"]


@pytest.mark.parametrize("part", [name for name in PARTS if name not in ("token_shifts", "difference_growth")])
def test_every_part_that_lists_words_says_the_unit(part: str) -> None:
    assert unit_of(part, "a reading")


def test_a_page_of_a_discovery_alone_is_text_and_small() -> None:
    run = _run(FOUND)
    page = report_page(run, chapters_of(run))
    shown = re.findall(r'<section id="m0-([\w-]+)"', page)
    assert shown == [*SECTIONS, "pair"] and "m0-verdict" not in page
    assert HOSTILE not in page and page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= len(SECTIONS) - 1
    assert page.count("<script") == 3 and unpacked(page, "plotly") == ""  # nothing on it is drawn
    assert len(page) < 100_000


def test_a_run_that_measured_more_has_the_same_sections_beside_its_own() -> None:
    run = _run(FOUND, "behaviour")
    shown = re.findall(r'<section id="m0-([\w-]+)"', report_page(run, chapters_of(run)))
    assert [name for name in shown if name in SECTIONS] == list(SECTIONS)
    assert shown[:3] == ["verdict", "behaviour", "prompts"] and shown[-2:] == ["experiments", "pair"]
