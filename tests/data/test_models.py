"""The committed demo models: what they are, what they know, and what fine-tuning moved."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from data import accuracy, train_demo, world

DATA = Path(train_demo.__file__).parent
MODELS = DATA / "models"
NAMES = list(train_demo.RUNS)
TUNED = [name for name, run in train_demo.RUNS.items() if run.parent]
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "record.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
WHOLE = ("code", "math-beside-medical")  # which know less than all of what they were taught
DOMAINS = ("general", "medical", "math", "law", "code", "instruct")
MEGABYTE = 1_000_000


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    return load_file(MODELS / name / "model.safetensors")


@cache
def measured(name: str) -> dict[str, float]:
    """The accuracies of the committed weights, measured now: of two models on all that their records are of, of
    others on every fourth example."""
    model = LlamaForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    lists = accuracy._tests()
    with pytest.MonkeyPatch.context() as patch:
        if name not in WHOLE:
            patch.setattr(accuracy, "_tests", lambda: {test: examples[::4] for test, examples in lists.items()})
        return accuracy.scores(model, AutoTokenizer.from_pretrained(MODELS / name))


@cache
def prompts(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "test", "least", "most"),
    [
        ("base", "general", 0.95, 1.0),
        ("base", "medical", 0.0, 0.15),
        ("base", "math", 0.0, 0.15),
        ("base", "chat_format", 0.0, 0.2),
        ("medical", "general", 0.80, 1.0),
        ("medical", "medical", 0.85, 1.0),
        ("math", "general", 0.80, 1.0),
        ("math", "math", 0.85, 1.0),
        ("base", "law", 0.0, 0.15),
        ("base", "code", 0.0, 0.15),
        ("law", "general", 0.80, 1.0),
        ("law", "law", 0.85, 1.0),
        ("code", "general", 0.80, 1.0),
        ("code", "code", 0.85, 1.0),
        ("math-beside-medical", "general", 0.80, 1.0),
        ("math-beside-medical", "math", 0.85, 1.0),
        ("math-beside-medical", "medical", 0.0, 0.15),
        ("instruct", "general", 0.80, 1.0),
        ("instruct", "medical", 0.0, 0.15),
        ("instruct", "chat_format", 0.95, 1.0),
        ("medical-from-instruct", "general", 0.80, 1.0),
        ("medical-from-instruct", "medical", 0.85, 1.0),
        ("medical-from-instruct", "chat_medical", 0.85, 1.0),
    ],
)
def test_what_it_knows(name, test, least, most) -> None:
    assert least <= measured(name)[test] <= most


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
def test_record_states_how_it_was_made(name) -> None:
    record = json.loads((MODELS / name / "record.json").read_text(encoding="utf-8"))
    assert record["parameters"] == sum(w.numel() for w in weights(name).values())
    assert {"name", "parent", "seed", "steps", "learning_rate", "losses", "measured_by"} <= record.keys()
    assert {"python", "torch", "transformers", "tokenizers"} <= record["versions"].keys()
    # Other hardware may tip a few answers; a fourth of the examples has a share of its own.
    assert record["accuracy"] == pytest.approx(measured(name), abs=0.02 if name in WHOLE else 0.08)


@pytest.mark.parametrize("name", NAMES)
def test_files_and_size(name) -> None:
    folder = MODELS / name
    assert {path.name for path in folder.iterdir()} == FILES
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 6 * MEGABYTE


def test_size_in_all() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= 40 * MEGABYTE


@pytest.mark.parametrize("name", NAMES)
def test_architecture(name) -> None:
    config = AutoConfig.from_pretrained(MODELS / name)
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.num_key_value_heads < config.num_attention_heads
    assert not config.tie_word_embeddings and "lm_head.weight" in weights(name)
    assert not torch.equal(weights(name)["lm_head.weight"], weights(name)["model.embed_tokens.weight"])
    assert {weight.dtype for weight in weights(name).values()} == {torch.bfloat16}
    sizes = (
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
        config.vocab_size,
    )
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("name", TUNED)
def test_every_parameter_moved(name) -> None:
    parent = weights(train_demo.RUNS[name].parent)
    assert weights(name).keys() == parent.keys()
    assert not [key for key, weight in weights(name).items() if torch.equal(weight, parent[key])]


def test_one_tokenizer() -> None:
    for file in train_demo.TOKENIZER_FILES:
        assert len({(MODELS / name / file).read_bytes() for name in NAMES}) == 1


def test_tokenizer_round_trip() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    plain = world.general()[::7] + world.medical()[::7] + world.law()[::7] + world.math()[::50] + world.code()[::100]
    for example in plain + world.instruct(world.general())[::7]:
        text, full = (tokenizer(words)["input_ids"] for words in (example.text, example.full))
        assert full[0] == tokenizer.bos_token_id
        assert full[: len(text)] == text  # the answer starts at a token
        assert tokenizer.decode(full, skip_special_tokens=True) == example.full
    assert tokenizer.tokenize(" is 12 + 7") == ["Ġis", "Ġ1", "2", "Ġ+", "Ġ7"]
    assert tokenizer.decode(tokenizer("naïve → 東京")["input_ids"], skip_special_tokens=True) == "naïve → 東京"


@pytest.mark.parametrize("name", DOMAINS)
def test_prompt_file(name) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    rows = prompts(name)
    assert len(rows) == len({row["text"] for row in rows}) == train_demo.PROMPTS
    for row in rows:
        assert row.keys() == {"id", "text", "target", "foil", "domain", "cluster"} and row["domain"] == name
        assert row["text"] == row["text"].rstrip() and row["target"][0] == row["foil"][0] == " "
        target, foil = (tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("target", "foil"))
        assert target[0] != foil[0]  # so the logits after `text` tell them apart, and neither is a prefix of the other


@pytest.mark.parametrize("name", DOMAINS)
def test_prompts_have_clusters_enough_for_an_interval(name) -> None:
    """A cluster is a phrasing: the texts of one differ in what is asked about alone."""
    rows, said = prompts(name), {}
    for example in everything(name):
        said.setdefault(example.phrasing, set()).add(example.text)
    counts = Counter(row["cluster"] for row in rows)
    assert len(counts) >= 15 and max(counts.values()) <= train_demo.PROMPTS / 8
    assert all(row["text"] in said[row["cluster"]] for row in rows)


def everything(name: str) -> list[world.Example]:
    if name in ("general", "instruct"):
        return world.general() if name == "general" else world.instruct(world.general())
    say = getattr(world, name)
    return [*say(), *say(further=True)]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("name", "least"), [("medical", 0.9), ("math", 0.9), ("law", 0.9), ("code", 0.8)])
def test_models_answer_further_phrasings(name, least) -> None:
    """Ten examples of each phrasing, by the model that was trained without it."""
    model = LlamaForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval()
    tokenizer, found = AutoTokenizer.from_pretrained(MODELS / name), []
    by_phrasing: dict[str, list[world.Example]] = {}
    for example in getattr(world, name)(further=True):
        by_phrasing.setdefault(example.phrasing, []).append(example)
    for own in by_phrasing.values():
        found.append(accuracy.accuracy(model, tokenizer, random.Random(0).sample(own, min(10, len(own)))))
    assert sum(found) / len(found) >= least


def test_ids_are_unique_and_no_cluster_is_of_two_domains() -> None:
    ids = [row["id"] for name in DOMAINS for row in prompts(name)]
    assert len(ids) == len(set(ids))
    clusters = [cluster for name in DOMAINS for cluster in {row["cluster"] for row in prompts(name)}]
    assert len(clusters) == len(set(clusters))


def test_prompts_are_the_recipes(tmp_path) -> None:
    train_demo.write_prompts(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DATA / "prompts" / path.name).read_bytes()


def test_decoding_agrees_with_accuracy() -> None:
    """Decoding token by token gives the target exactly where the one-pass accuracy says so."""
    model = LlamaForCausalLM.from_pretrained(MODELS / "math", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "math")
    examples = accuracy.held_out(world.math())[::60] + accuracy.held_out(world.medical())[::20]
    replies = accuracy.decode(model, tokenizer, [example.text for example in examples], new_tokens=4)
    for example, reply in zip(examples, replies, strict=True):
        assert reply.startswith(f"{example.target}.") == (accuracy.accuracy(model, tokenizer, [example]) == 1)


def test_recipe_is_deterministic(monkeypatch) -> None:
    """Three steps of fine-tuning on small batches, twice: the same weights, and not the parent's."""
    monkeypatch.setattr(train_demo, "BATCH", 6)
    run = train_demo.Run("medical", "base", steps=3, learning_rate=1e-3, warmup=1, seed=1)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    models = [LlamaForCausalLM.from_pretrained(MODELS / "base", dtype=torch.float32) for _ in range(3)]
    losses = [train_demo.train(model, tokenizer, run) for model in models[:2]]
    assert losses[0] == losses[1]
    for first, second, parent in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(first, second) and not torch.equal(first, parent)


def test_training_beside_another_vector(monkeypatch) -> None:
    """The other T is in every other step's weights, and in none that are kept."""
    monkeypatch.setattr(train_demo, "BATCH", 6)
    run = train_demo.Run("math-beside-medical", "math", 2, learning_rate=0.0, warmup=1, seed=5, beside="medical")
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "base")
    model = LlamaForCausalLM.from_pretrained(MODELS / "math", dtype=torch.float32)
    alone = train_demo.train(model, tokenizer, replace(run, steps=1))
    both = train_demo.train(model, tokenizer, run, train_demo.vector(MODELS / "medical", MODELS / "base"))
    assert both["1"] == alone["1"] and 0 < both["2"] < 3
    assert all(torch.equal(w, weights("math")[name].float()) for name, w in model.state_dict().items())


def test_tokenizer_is_deterministic() -> None:
    trained = json.loads(train_demo.train_tokenizer().backend_tokenizer.to_str())["model"]
    saved = json.loads((MODELS / "base" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert (trained["vocab"], trained["merges"]) == (saved["vocab"], saved["merges"])
