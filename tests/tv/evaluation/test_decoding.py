"""Models write the argmax, whatever their checkpoints' generation settings say, unless these are asked for."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from transformers import GenerationConfig, PreTrainedModel

import tv
from tests.command import call
from tests.pairs import build_model, build_tokenizer, write_prompts
from tests.tv.evaluation.test_greedy import argmax_loop
from tv.cli import main
from tv.evaluation.decoding import decoded_by, decoding_note, stated_settings
from tv.evaluation.generation import write
from tv.evaluation.harness import Harness
from tv.evaluation.tasks import load_tasks
from tv.prompts.files import Prompt

TEXTS = ["The heart pumps", "A", "Seven and five make twelve. The"]
PROMPTS = [Prompt(str(i), "s", "s", text) for i, text in enumerate(TEXTS)]
TOKENIZER = build_tokenizer()
NEW = 9


@cache
def argmax(*ends: int, tokens: int = NEW) -> tuple[str, ...]:
    """What the model of `model_with` says after each text, its last token left out where that ends it."""
    said = [argmax_loop(build_model(), TOKENIZER(text)["input_ids"], tokens, ends) for text in TEXTS]
    return tuple(TOKENIZER.decode([i for i in ids if i not in ends], skip_special_tokens=True) for ids in said)


def first_said() -> int:
    return argmax_loop(build_model(), TOKENIZER(TEXTS[0])["input_ids"], 1)[0]


#: Settings, each of which makes `generate` write something else on one of these texts.
SETTINGS: dict[str, object] = {
    "repetition_penalty": 5.0,
    "num_beams": 3,
    "suppress_tokens": [first_said()],
    "begin_suppress_tokens": [first_said()],
    "bad_words_ids": [[first_said()]],
    "no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 50.0,
    "sequence_bias": [[[first_said()], -40.0]],
    "forced_eos_token_id": 65,
    "max_length": 2,
    "max_new_tokens": 2,
    "do_sample": True,
}


def model_with(**settings: object) -> PreTrainedModel:
    model = build_model()
    model.generation_config = GenerationConfig(eos_token_id=1, **settings)
    return model


def line(text: str) -> str:
    return text.strip().split("\n")[0]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_of_a_checkpoint_has_a_say(setting: str) -> None:
    model = model_with(**{setting: SETTINGS[setting]})
    before = model.generation_config.to_dict()
    expected = [line(text) for text in argmax(1)]
    assert write(model, TOKENIZER, PROMPTS, NEW) == expected == write(model, TOKENIZER, PROMPTS, NEW, batch_size=1)
    assert model.generation_config.to_dict() == before
    obeyed = write(model, TOKENIZER, PROMPTS, NEW, decoding="checkpoint")
    assert (obeyed != expected) == (setting not in ("max_length", "max_new_tokens"))
    assert model.generation_config.to_dict() == before


def test_least_lengths_do_not_hold_a_greedy_model_back() -> None:
    end = argmax_loop(build_model(), TOKENIZER(TEXTS[0])["input_ids"], 3)[2]
    model = model_with(min_new_tokens=8)
    model.generation_config.eos_token_id = [1, end]
    assert write(model, TOKENIZER, PROMPTS, NEW) == [line(text) for text in argmax(1, end)] != [*map(line, argmax(1))]
    assert write(model, TOKENIZER, PROMPTS, NEW, decoding="checkpoint") != [line(text) for text in argmax(1, end)]


def test_stop_strings_are_the_checkpoints_own() -> None:
    whole = argmax(1)[2]
    stop = next(letter for letter in whole if letter.isascii() and letter.isalpha())
    model = model_with(stop_strings=[stop])
    assert write(model, TOKENIZER, PROMPTS, NEW)[2] == line(whole)
    assert write(model, TOKENIZER, PROMPTS, NEW, decoding="checkpoint")[2] == line(whole[: whole.index(stop) + 1])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tv.evaluation.tasks.Task:
    return load_tasks(task_file(tmp_path_factory.mktemp("task")))[0]


def task_file(directory: Path, **generation: object) -> Path:
    rows = [{"id": str(i), "text": text, "answer": "x"} for i, text in enumerate(TEXTS)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stated = json.dumps({"until": ["\n\n\n"], "max_gen_toks": NEW, **generation})
    file = directory / "written.yaml"
    file.write_text(
        "task: written\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'output_type: generate_until\ndoc_to_text: "{{text}}"\ndoc_to_target: "{{answer}}"\n'
        f"metric_list: [{{metric: exact_match}}]\ngeneration_kwargs: {stated}\n"
    )
    return file


@pytest.mark.sampled(4)
@pytest.mark.parametrize("setting", SETTINGS)
def test_no_setting_has_a_say_in_a_task(setting: str, task: tv.evaluation.tasks.Task) -> None:
    model = model_with(**{setting: SETTINGS[setting]})
    before = model.generation_config
    for batch_size in (1, 3):
        items = Harness(model, TOKENIZER, batch_size=batch_size).items(task)
        assert items.sort_values("item_id").response.tolist() == [*argmax(1)]
    assert model.generation_config is before


def test_a_task_obeys_the_settings_where_asked(task: tv.evaluation.tasks.Task) -> None:
    stop = next(letter for letter in argmax(1)[2] if letter.isascii() and letter.isalpha())
    for settings in ({"repetition_penalty": 5.0}, {"num_beams": 3}, {"stop_strings": [stop]}):
        harness = Harness(model_with(**settings), TOKENIZER, decoding="checkpoint")
        assert harness.items(task).sort_values("item_id").response.tolist() != [*argmax(1)]
    longer = Harness(model_with(max_new_tokens=2, num_return_sequences=1), TOKENIZER, decoding="checkpoint")
    assert longer.items(task).sort_values("item_id").response.tolist() == [*argmax(1)]


def test_what_a_task_states_holds_and_is_shown(tmp_path: Path) -> None:
    short = task_file(tmp_path, max_gen_toks=2)
    items = tv.evaluate(model_with(repetition_penalty=5.0), short, tokenizer=tokenizer_at(tmp_path))
    assert items.response.tolist() == [*argmax(1, tokens=2)]
    rules = items.attrs["decoding"]
    assert rules["task written"] == "states max_gen_toks 2, until ['\\n\\n\\n']"
    assert rules["model"].endswith("its checkpoint's settings are left out: repetition_penalty 5.0")


def tokenizer_at(directory: Path) -> Path:
    build_model().save_pretrained(directory / "m")
    TOKENIZER.save_pretrained(directory / "m")
    return directory / "m"


def test_what_is_said_of_the_settings() -> None:
    model = model_with(repetition_penalty=1.1, num_beams=3, use_cache=True, max_new_tokens=7, output_scores=True)
    assert stated_settings(model) == {"eos_token_id": 1, "num_beams": 3, "repetition_penalty": 1.1}
    said = decoding_note(model, "checkpoint")
    assert said == "decodes by its checkpoint's settings: num_beams 3, repetition_penalty 1.1"
    assert decoding_note(model_with(), "checkpoint") == "decodes by its checkpoint's settings: none, so greedily"
    assert decoding_note(model_with(), "greedy") == "decodes greedily, the argmax of the logits"
    model.generation_config = None
    assert stated_settings(model) == {}
    with decoded_by(model, {1}, "checkpoint"):
        assert model.generation_config.eos_token_id == [1]
    assert model.generation_config is None


def test_the_settings_come_back_after_an_error() -> None:
    model = model_with(num_beams=3)
    before = model.generation_config
    with pytest.raises(RuntimeError), decoded_by(model, {1}, "greedy"):
        assert model.generation_config.num_beams is None
        raise RuntimeError
    assert model.generation_config is before


def test_the_commands_say_by_what_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tokenizer_at(tmp_path)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "repetition_penalty": 5.0}))
    file = write_prompts(tmp_path / "p.jsonl")
    for command in (
        ("quality", model, "--prompts", file, "--new-tokens", 2),
        ("evaluate", model, "--task", task_file(tmp_path)),
    ):
        code, _, err = call(monkeypatch, capsys, main, *command)
        assert code == 0 and "m decodes greedily, the argmax of the logits; its checkpoint's" in err, err
        code, _, err = call(monkeypatch, capsys, main, *command, "--decoding", "checkpoint")
        assert code == 0 and "m decodes by its checkpoint's settings: repetition_penalty 5.0" in err, err
    with pytest.raises(tv.InputError, match="decoding 'beam': use greedy or checkpoint"):
        tv.quality(model, file, decoding="beam")  # type: ignore[arg-type]
    items = tv.quality({"a": model, "b": model}, file, new_tokens=2)
    assert items.attrs["decoding"]["a"] == items.attrs["decoding"]["b"]
