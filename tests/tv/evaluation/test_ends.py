"""All models that are compared stop at the same tokens: those that any of them names as its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

import probes
import tv
from tests.pairs import build_model, build_tokenizer, write_prompts, write_suite
from tests.tv.checkpoints.test_gguf import Q, write_gguf
from tests.tv.evaluation.test_decoding import NEW, TEXTS, TOKENIZER, argmax, line, task_file
from tests.tv.evaluation.test_greedy import argmax_loop
from tv.checkpoints.live import load_model
from tv.evaluation.ends import ends_by, own_ends
from tv.evaluation.greedy import end_ids
from tv.experiments.bench import Bench, Point, Settings
from tv.experiments.cells import Cells

#: The model says it third after the first text; the tuned checkpoint alone names it as an end.
END = argmax_loop(build_model(), TOKENIZER(TEXTS[0])["input_ids"], 3)[2]
NOTE = f"the models' end-of-text tokens differ (base: 1 '<eos>'; tuned: 1 '<eos>', {END} "


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints of the same weights: what they answer differs by their settings alone."""
    folder = tmp_path_factory.mktemp("ends")
    paths = {"base": folder / "base", "tuned": folder / "tuned"}
    for path in paths.values():
        build_model().save_pretrained(path)
        TOKENIZER.save_pretrained(path)
    (paths["tuned"] / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, END]}))
    return paths


@pytest.mark.parametrize("order", [("base", "tuned"), ("tuned", "base")])
def test_quality_ends_both_at_the_tokens_of_both(order: tuple[str, str], pair: dict[str, Path], tmp_path: Path) -> None:
    rows = write_prompts(tmp_path / "p.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    items = tv.quality({name: pair[name] for name in order}, rows, new_tokens=NEW)
    said = items[items.metric == "words"].groupby("variant").response.apply(list)
    assert (
        said["base"] == said["tuned"] == [line(text) for text in argmax(1, END)] != [line(text) for text in argmax(1)]
    )
    (note,) = (note for note in items.attrs["notes"] if "end-of-text" in note)
    assert note.endswith("; each of them ends every model's text") and (order[0] == "tuned" or note.startswith(NOTE))
    alone = tv.quality(pair["base"], rows, new_tokens=NEW)
    assert alone[alone.metric == "words"].response.tolist() == [line(text) for text in argmax(1)]
    assert alone.attrs["notes"] == []


def test_each_ends_with_its_own_where_its_settings_are_asked_for(pair: dict[str, Path], tmp_path: Path) -> None:
    rows = write_prompts(tmp_path / "p.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    items = tv.quality(pair, rows, new_tokens=NEW, decoding="checkpoint")
    said = items[items.metric == "words"].groupby("variant").response.apply(list)
    assert said["base"] == [line(text) for text in argmax(1)]
    assert said["tuned"] == [line(text) for text in argmax(1, END)]
    assert items.attrs["notes"][-1].startswith(NOTE) and items.attrs["notes"][-1].endswith(
        "each model ends with its own"
    )


def test_tasks_in_which_a_model_writes_too(pair: dict[str, Path], tmp_path: Path) -> None:
    items = tv.evaluate(pair, task_file(tmp_path))
    said = items.groupby("variant").response.apply(list)
    assert said["base"] == said["tuned"] != [*argmax(1)]
    assert items.attrs["notes"][-1].startswith(NOTE)
    single = tv.evaluate(pair["base"], task_file(tmp_path))
    assert single.response.tolist() == [*argmax(1)] and single.attrs["notes"] == []


def test_an_experiment_compares_both_by_one_rule(pair: dict[str, Path], tmp_path: Path) -> None:
    chosen = Settings("x", task_file(tmp_path))
    base, tuned = pair["base"], pair["tuned"]
    under = Bench(base, base, chosen, Cells(None), [tuned]).items([Point("x")])
    over = Bench(tuned, base, chosen, Cells(None)).items([Point("x")])
    assert under.response.tolist() == over.response.tolist() != [*argmax(1)]


@pytest.mark.parametrize("source", ["base", "tuned"])
def test_a_runs_continuations_end_at_the_tokens_of_both(source: str, pair: dict[str, Path], tmp_path: Path) -> None:
    suite = write_suite(tmp_path, pair["base"], pair["tuned"], attribute=None, measure=["behaviour"])
    write_prompts(tmp_path / "prompts.jsonl", [{"id": "p", "text": TEXTS[0]}])
    changes = {"generate": {"tokens": NEW, "from": source}, "positions": "generated"}
    job = probes.prepare(suite, out=tmp_path / "run", stages=["capture"], settings=changes)
    (item,) = job.encoded
    assert item.ids[item.n_text :] == argmax_loop(build_model(), item.ids[: item.n_text], NEW, {1, END})
    assert item.ids[-1] == END and job.notes[-1].startswith(NOTE.replace("tuned", "moved"))
    (pair["tuned"] / "generation_config.json").rename(tmp_path / "away")
    try:
        again = probes.prepare(suite, out=tmp_path / "run", stages=["capture"], settings=changes)
        assert again.identity != job.identity and not any("end-of-text" in note for note in again.notes)
    finally:
        (tmp_path / "away").rename(pair["tuned"] / "generation_config.json")


def test_ends_are_read_without_the_model_and_are_those_of_the_model(pair: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"  # no generation settings: those of the configuration
    build_model().save_pretrained(bare)
    (bare / "generation_config.json").unlink()
    vector = tv.extract(pair["base"], pair["tuned"])
    vector.save(tmp_path / "vector.safetensors")
    for source, base in (
        (bare, None),
        (pair["tuned"], None),
        (vector, pair["tuned"]),
        (tmp_path / "vector.safetensors", pair["base"]),
    ):
        assert own_ends(source, TOKENIZER, base) == end_ids(load_model(source, base=base), TOKENIZER)
    packed = tmp_path / "packed"
    packed.mkdir()
    write_gguf(build_model(), packed / "m.gguf", Q.F32)
    (packed / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))  # which is not read beside a GGUF
    assert own_ends(packed, TOKENIZER) == end_ids(load_model(packed), TOKENIZER)
    live = build_model()
    live.generation_config.eos_token_id = 7
    assert own_ends(live, TOKENIZER) == {1, 7} and own_ends(vector, TOKENIZER, live) == {1, 7}


def test_another_models_end_counts_by_its_name() -> None:
    shared, other = build_tokenizer(290), build_tokenizer(290)
    other.add_tokens(["<|x|>", "<|end|>"], special_tokens=True)
    shared.add_tokens(["<|end|>"], special_tokens=True)
    words: dict[str, PreTrainedTokenizerFast] = {"a": shared, "b": other}
    assert (shared.convert_tokens_to_ids("<|end|>"), other.convert_tokens_to_ids("<|end|>")) == (290, 291)
    assert ends_by("greedy", {"a": {1}, "b": {1, 291}}, words)[0] == {"a": {1, 290}, "b": {1, 291}}
    assert ends_by("greedy", {"a": {1, 300}, "b": {290}}, words)[0] == {"a": {1, 300}, "b": {1, 290, 300}}
    assert ends_by("checkpoint", {"a": {1}, "b": {291}}, words)[0] == {"a": {1}, "b": {291}}
    assert ends_by("greedy", {"a": {1, 290}, "b": {1, 291}}, words)[1] == []
