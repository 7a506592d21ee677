"""What is said of two tokenizers that differ in one thing; and which differences no pair can have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import tv
from tests.pairs import build_model, build_pair, build_tokenizer
from tv.checkpoints.live import load_model
from tv.checkpoints.pairing import PairFacts
from tv.checkpoints.tokenizers import other_meanings

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def facts_of(pair: tuple[Path, Path]) -> PairFacts:
    return tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(pair[1]))


def edit(directory: Path, change: Edit, file: str = "tokenizer.json") -> None:
    content = json.loads((directory / file).read_text())
    change(content)
    (directory / file).write_text(json.dumps(content))


def ids(directory: Path, text: str) -> list[int]:
    return list(AutoTokenizer.from_pretrained(directory)(text)["input_ids"])


DIGITS = {"type": "Digits", "individual_digits": True}
RULES: dict[str, tuple[Edit, str]] = {
    "merges": (lambda t: t["model"]["merges"].reverse(), "merges"),
    "fewer merges": (lambda t: t["model"]["merges"].pop(), "merges"),
    "model settings": (lambda t: t["model"].update(ignore_merges=True), "settings of its model"),
    "dropout": (lambda t: t["model"].update(dropout=0.5), "settings of its model"),
    "normalizer": (lambda t: t.update(normalizer={"type": "Lowercase"}), "normalizer"),
    "pre-tokenizer": (
        lambda t: t.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [DIGITS, t["pre_tokenizer"]]}),
        "pre-tokenizer",
    ),
    "prefix space": (lambda t: t["pre_tokenizer"].update(add_prefix_space=True), "pre-tokenizer"),
    "no BOS": (lambda t: t.update(post_processor=None), r"BOS rule \(\['<bos>'\] and \[\]\)"),
    "another BOS": (
        lambda t: t["post_processor"]["single"].append({"SpecialToken": {"id": "<bos>", "type_id": 0}}),
        r"BOS rule \(\['<bos>'\] and \['<bos>', '<bos>'\]\)",
    ),
    "stripping flag": (lambda t: t["added_tokens"][1].update(lstrip=True), r"added tokens \('<eos>'\)"),
    "normalized flag": (lambda t: t["added_tokens"][2].update(normalized=True), r"added tokens \('<pad>'\)"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("rule", RULES)
def test_one_other_rule_is_named(rule: str, pair: tuple[Path, Path]) -> None:
    change, named = RULES[rule]
    assert facts_of(pair).tokenizer == "same"
    edit(pair[1], change)
    facts = facts_of(pair)
    assert facts.tokenizer == "other rules" and len(facts.notes) == 1
    (note,) = facts.notes
    assert note.startswith("the tokenizers differ in ")
    assert re.search(f"differ in {named}$", note), note
    back = facts_of(pair[::-1])
    assert back.tokenizer == "other rules"


def test_settings_beside_the_rules_count_too(pair: tuple[Path, Path]) -> None:
    config = pair[1] / "tokenizer_config.json"
    before = config.read_text()
    edit(pair[1], lambda c: c.update(eos_token="<pad>"), "tokenizer_config.json")
    assert "differ in eos_token ('<eos>' and '<pad>')" in facts_of(pair).notes[0]
    config.write_text(before)
    # What the loader leaves unread makes no other tokens: beside a tokenizer.json that is add_bos_token too.
    unread = {"model_max_length": 1000, "padding_side": "left", "add_bos_token": False, "add_eos_token": True}
    edit(pair[1], lambda c: c.update(unread), "tokenizer_config.json")
    assert ids(pair[0], "A lamp") == ids(pair[1], "A lamp")
    assert facts_of(pair).tokenizer == "same" and not facts_of(pair).notes


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "additional_chat_templates/x.jinja"])
def test_a_chat_template_wherever_it_lies(place: str, pair: tuple[Path, Path]) -> None:
    def write(directory: Path, template: str) -> None:
        if place.endswith(".json"):
            edit(directory, lambda c: c.update(chat_template=template), place)
        else:
            (directory / place).parent.mkdir(exist_ok=True)
            (directory / place).write_text(template)
            (directory / "chat_template.jinja").touch()

    write(pair[1], TEMPLATE)
    assert facts_of(pair).tokenizer == "other rules"
    assert "differ in chat template (only the tuned model has one)" in facts_of(pair).notes[0]
    assert "(only the base has one)" in facts_of(pair[::-1]).notes[0]
    write(pair[0], TEMPLATE + " ")
    assert facts_of(pair).notes[0].endswith("differ in chat template")
    write(pair[0], TEMPLATE)
    assert facts_of(pair).tokenizer == "same"


def test_several_differences_are_one_note(pair: tuple[Path, Path]) -> None:
    edit(pair[1], lambda t: t.update(normalizer={"type": "NFC"}, post_processor=None))
    assert "differ in normalizer, BOS rule (" in facts_of(pair).notes[0]


def with_reserved(directory: Path, *names: str, added: bool) -> None:
    """The tokenizer of `tests.pairs` with more tokens after all others."""
    tokenizer = build_tokenizer(290)
    tokenizer.add_tokens(list(names), special_tokens=True)
    tokenizer.save_pretrained(directory)
    if not added:  # only in the vocabulary, as some tokenizers have them
        size = len(tokenizer) - len(names)
        edit(directory, lambda t: t["model"]["vocab"].update({name: size + i for i, name in enumerate(names)}))
        edit(directory, lambda t: t.update(added_tokens=[a for a in t["added_tokens"] if a["content"] not in names]))
        edit(directory, lambda c: c.pop("extra_special_tokens", None), "tokenizer_config.json")


@pytest.mark.parametrize(
    ("before", "added"),
    [
        ("<|reserved_special_token_0|>", True),
        ("<unused0>", True),
        ("<unused0>", False),
        ("[unused7]", False),
        ("<x>", True),
    ],
)
def test_a_renamed_reserved_token_is_noted(before: str, added: bool, pair: tuple[Path, Path]) -> None:
    with_reserved(pair[0], before, added=added)
    with_reserved(pair[1], "<|my_token|>", added=added)
    facts = facts_of(pair)
    assert facts.tokenizer == "renamed" and len(facts.notes) == 1
    assert facts.notes[0].endswith(
        f"reserved ids have other tokens in the tuned model (id 290: {before!r} and '<|my_token|>')"
    )
    assert len(tv.geometry(*pair, heads=False)) == len(tv.info(pair[0]))


def test_an_added_token_that_moved_is_said(pair: tuple[Path, Path]) -> None:
    with_reserved(pair[0], "<a>", "<b>", added=True)
    with_reserved(pair[1], "<b>", "<a>", added=True)
    facts = facts_of(pair)
    assert facts.tokenizer == "other rules" and "added tokens ('<a>')" in facts.notes[0]
    assert "2 reserved ids have other tokens" in facts.notes[1]


def _swap(t: dict[str, Any]) -> None:
    vocab = t["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def _rename(t: dict[str, Any]) -> None:
    vocab = t["model"]["vocab"]
    vocab["entirely"] = vocab.pop(max(vocab, key=vocab.get))
    t["model"]["merges"] = [pair for pair in t["model"]["merges"] if "".join(pair) in vocab]


@pytest.mark.parametrize("change", [_swap, _rename])
def test_other_ids_of_ordinary_tokens_are_refused(change: Edit, pair: tuple[Path, Path]) -> None:
    edit(pair[1], change)
    with pytest.raises(
        tv.CheckpointError, match=r"tokenizer differs from .*: id \d+ is '.*' in the base and '.*' here"
    ):
        facts_of(pair)


def test_tokens_that_moved_to_new_ids_are_refused(pair: tuple[Path, Path]) -> None:
    def move(t: dict[str, Any]) -> None:
        vocab = t["model"]["vocab"]
        vocab[max(vocab, key=vocab.get)] += 5

    edit(pair[1], move)
    with pytest.raises(tv.CheckpointError, match=r"token '.*' has id \d+ in the base and \d+ here"):
        facts_of(pair)


def test_a_grown_tokenizer_with_the_same_rules(pair: tuple[Path, Path]) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<new>", "<newer>"])
    tokenizer.save_pretrained(pair[1])
    facts = facts_of(pair)
    assert facts.tokenizer == "grown" and facts.notes[0].startswith("2 tokens are in one tokenizer only")


def test_what_cannot_be_compared_is_said(pair: tuple[Path, Path]) -> None:
    (pair[1] / "tokenizer.json").write_text("{}")
    facts = facts_of(pair)
    assert facts.tokenizer == "not compared" and facts.notes[0].startswith("tokenizers not compared: ")
    for file in pair[1].glob("tokenizer*"):
        file.unlink()
    facts = facts_of(pair)
    assert facts.tokenizer == "not compared" and facts.notes[0].endswith(f"none lies beside {pair[1]}")


def test_live_models_have_the_tokenizer_of_their_directory(pair: tuple[Path, Path]) -> None:
    live = load_model(pair[1])
    edit(pair[1], RULES["normalizer"][0])
    facts = tv.check_pair(tv.open_checkpoint(pair[0]), tv.open_checkpoint(live))
    assert facts.tokenizer == "other rules"
    nameless = tv.check_pair(tv.open_checkpoint(build_model()), tv.open_checkpoint(build_model(seed=1)))
    assert nameless.tokenizer == "not compared"


def test_other_meanings() -> None:
    base, tuned = {"a": 0, "b": 1, "c": 2, "d": 5}, {"a": 0, "x": 1, "c": 2, "y": 3}
    assert other_meanings(base, tuned) == {1: ("b", "x")} and other_meanings(base, base) == {}
