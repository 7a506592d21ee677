"""The suites for models of the hub are ready to run, and say what their estimate says; nothing is fetched."""

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from probes.capture.estimate import estimate
from probes.suite import load_suite
from tests.docs.commands import ROOT
from tv.architecture.resolve import resolve, skeleton
from tv.checkpoints.live import load_tokenizer
from tv.prompts.encoding import encode
from tv.prompts.files import read_prompts

SUITES = ROOT / "examples" / "suites"
#: The bases' shapes, as their configurations on the hub have them.
SHAPES = {
    "smollm2-135m": transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    ),
    "qwen2.5-0.5b": transformers.Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    ),
    "llama-3-8b-medical": transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
}


def test_every_suite_is_here() -> None:
    assert {path.stem for path in SUITES.iterdir()} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_suite_names_models_of_the_hub_and_prompts_that_are_here(name: str) -> None:
    path = SUITES / f"{name}.yaml"
    suite = load_suite(path)
    models = [suite.base, *suite.tuned.values()]
    assert suite.name == name and all(model.count("/") == 1 and not os.path.isabs(model) for model in models)
    assert {entry.file.parent for entry in suite.prompts if entry.file} == {ROOT / "examples" / "prompts"}
    prompts = read_prompts(suite.prompts)
    assert min(Counter(prompt.domain for prompt in prompts).values()) >= 24
    assert suite.attribute is not None
    if suite.attribute.metric == "logit_diff":
        assert all(prompt.target and prompt.foil for prompt in prompts)
    first = path.read_text(encoding="utf-8").split("name:")[0]
    assert "Needs the hub" in first and f"probes run examples/suites/{path.name}" in first


@pytest.mark.parametrize("name", SHAPES)
def test_a_suite_takes_the_disk_it_says(name: str) -> None:
    """By the estimate; the tokenizer of the embedded models makes up to twice as many tokens as theirs."""
    path = SUITES / f"{name}.yaml"
    suite = load_suite(path)
    architecture = resolve(skeleton(SHAPES[name]))
    prompts = [replace(prompt, chat=None) for prompt in read_prompts(suite.prompts)]
    encoded = encode(prompts, load_tokenizer(ROOT / "data" / "models" / "base"), 8192)
    told = sum(estimate(suite, architecture, encoded).values()) / 1e6
    (said,) = map(int, re.findall(r"tables of (\d+) MB", path.read_text(encoding="utf-8")))
    assert said / 2 < told < said * 2.5


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "prompts").iterdir()), ids=lambda path: path.stem)
def test_a_target_and_its_foil_part_at_once(path: Path) -> None:
    """At the first letter after the space, so that no tokenizer sees them begin alike."""
    for prompt in read_prompts(load_suite(_alone(path)).prompts):
        assert not prompt.text.endswith(" ") and (prompt.target is None) == (prompt.foil is None)
        if prompt.target and prompt.foil:
            assert prompt.target[0] == prompt.foil[0] == " " and prompt.target[:3] != prompt.foil[:3]


def _alone(path: Path) -> dict[str, object]:
    return {"name": "alone", "base": "org/base", "tuned": {"a": "org/a"}, "prompts": [{"file": str(path)}]}
