"""A discovery of much text, of a killed one, and what is refused before any work."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import probes
from probes.capture.pair import make_pair
from probes.discovery.discover import _drawn, require_discovery
from probes.discovery.kept import Kept
from probes.discovery.observing import Texts, observe, sides_of
from probes.discovery.own_texts import is_written, write_texts
from probes.discovery.part import PARTS, Context, Part
from probes.discovery.sides import Sides
from probes.suite import Discovery
from tests.pairs import TEXT
from tests.probes.discovery.conftest import GENERAL, MODELS
from tests.probes.discovery.planted import context_of, planted_pair
from tv.prompts.encoding import encode
from tv.prompts.files import Prompt
from tv.runtime.compute import Compute

PAIR = str(MODELS / "base"), str(MODELS / "medical")


def _tables(parts: dict[str, Part]) -> list[pd.DataFrame]:
    return [rows for part in parts.values() for _, rows in part.results()]


def _parts(context: Context, *names: str) -> dict[str, Part]:
    return {name: PARTS[name](context) for name in names}


@pytest.mark.thorough
def test_a_killed_discovery_goes_on_behind_the_last_side_that_it_kept(tmp_path: Path) -> None:
    names, sides = ("token_shifts", "divergences", "difference_growth"), sides_of(("random", "sham"), 4)
    whole = context_of(planted_pair())
    expected = _parts(whole, *names)
    observe(whole.sides, whole.texts, sides, list(expected.values()))
    killed = _parts(context_of(planted_pair()), *names)
    observe(killed["divergences"].context.sides, whole.texts, sides[:4], list(killed.values()))
    Kept(tmp_path, every=0).keep(4, killed, last=False)
    context = context_of(planted_pair())
    again, kept = _parts(context, *names), Kept(tmp_path)
    assert kept.done == 4
    kept.restore(again)
    observe(context.sides, context.texts, sides, list(again.values()), begin=kept.done)
    for one, other in zip(_tables(expected), _tables(again), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-5)


def test_nothing_moved_is_nothing_found() -> None:
    base = planted_pair().base
    context = context_of(make_pair(base, copy.deepcopy(base), planted_pair().tokenizer))
    parts = _parts(context, *PARTS)
    observe(context.sides, context.texts, sides_of(("sham",), 1), list(parts.values()))
    tables = [(table, rows) for part in parts.values() for table, rows in part.results()]
    assert not any(rows.stands_out.any() for table, rows in tables if table == "discovered_words")
    assert "steering" not in dict(tables) and "direction_words" not in dict(tables)


def test_texts_of_one_cluster_are_refused_before_any_work() -> None:
    require_discovery(Discovery(), [str(i % 4) for i in range(16)], Compute())
    with pytest.raises(probes.InputError, match="all 16 texts are of 1 cluster, which"):
        require_discovery(Discovery(), ["a"] * 16, Compute())


def test_what_cannot_be_kept_stops_no_discovery(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part: Any = type("Odd", (), {})()
    part.held = object()
    kept = Kept(tmp_path, every=0)
    kept.keep(1, {"odd": part}, last=True)
    kept.keep(2, {"odd": part}, last=True)
    assert kept.done == 0 and len(caplog.messages) == 1 and "cannot be resumed" in caplog.text


def test_ten_times_the_texts_are_no_more_to_keep(tmp_path: Path) -> None:
    held = []
    for n in (200, 2000):
        pair, words = planted_pair(), TEXT.split()
        prompts = [Prompt(f"t{i}", "texts", "texts", " ".join(words[i % 30 : i % 30 + 4])) for i in range(n)]
        texts = encode(prompts, pair.tokenizer, 64)
        context = Context(pair, Texts.of(texts, 24, 64, pair.pad_id, 0), Sides(pair, texts, 64, 0), 0)
        parts = _parts(context, "token_shifts", "divergences")
        observe(context.sides, context.texts, sides_of((), 0)[:1], list(parts.values()))
        divergences = parts["divergences"]
        assert len(divergences.rows) == n  # the table: a row a text
        divergences.rows.clear()
        Kept(tmp_path / str(n), every=0).keep(1, parts, last=True)
        held.append(sum(file.stat().st_size for file in (tmp_path / str(n)).rglob("*") if file.is_file()))
    assert held[1] < 1.1 * held[0]


def test_a_budget_of_tokens_draws_texts_by_the_seed() -> None:
    texts = list(context_of(planted_pair()).texts.encoded)
    some, others = _drawn(texts, 60, 0), _drawn(texts, 60, 1)
    assert 40 < sum(len(item.ids) for item in some) <= 60 and some != others
    assert some == _drawn(list(reversed(texts)), 60, 0)[::-1] and _drawn(texts, None, 0) == texts


def test_the_same_texts_are_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "run.texts.jsonl"
    assert not is_written(file, "own-a")
    write_texts(["one", "two"], file, "own-a")
    assert is_written(file, "own-a") and not is_written(file, "own-b")


@pytest.mark.parametrize(
    ("settings", "compute", "said"),
    [
        ({"parts": ["words"]}, Compute(), "no part 'words'; there are"),
        ({"tokens": 100}, Compute(), "give at least 512"),
        ({}, Compute(workers=2, engine="ray"), "leave engine out"),
        ({}, Compute(stream=True), "both models in memory"),
    ],
)
def test_what_cannot_be_is_refused_before_the_base_writes_texts(
    settings: dict[str, object], compute: Compute, said: str, tmp_path: Path
) -> None:
    with pytest.raises(probes.InputError, match=said):
        probes.discover(*PAIR, out=tmp_path / "run", settings=settings, compute=compute)
    assert not list(tmp_path.iterdir())


def test_a_suite_is_not_streamed_either_and_each_reads_the_same_tokens(tmp_path: Path) -> None:
    suite = {"name": "s", "base": PAIR[0], "tuned": {"m": PAIR[1]}, "prompts": [{"file": str(GENERAL)}], "discover": {}}
    with pytest.raises(probes.InputError, match="both models in memory"):
        probes.prepare(suite, out=tmp_path / "run", stages=["discover"], compute=Compute(stream=True))
    with pytest.raises(probes.InputError, match="leave out attribute, discover"):
        probes.prepare({**suite, "tokenizer": "own", "measure": ["behaviour"]}, out=tmp_path / "run")


@pytest.mark.parametrize("ending", ["csv", "parquet", "dataset"])
def test_texts_come_from_tables_and_data_sets_too(ending: str, tmp_path: Path) -> None:
    rows = pd.DataFrame({"text": TEXT.split()[:24]})
    path = tmp_path / f"texts.{ending}"
    if ending == "csv":
        rows.to_csv(path, index=False)
    elif ending == "parquet":
        rows.to_parquet(path)
    else:
        pytest.importorskip("datasets")
        path.mkdir()
        rows.to_parquet(path / "train.parquet")
    less = {"parts": ["token_shifts"], "draws": 1, "null_texts": 4, "controls": ["random"], "tokens": 512, "longest": 8}
    run = probes.discover(*PAIR, texts=[path], out=tmp_path / "run", settings=less)
    read = run["discovered_texts"]
    assert len(read) == 24 and read.in_null.sum() == 4 and set(read.half) == {0, 1} and read.tokens.max() <= 8
