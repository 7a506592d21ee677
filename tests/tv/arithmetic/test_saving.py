"""Weights written tensor by tensor: shards, their order, their index; and the files that go beside them."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from tests.pairs import build_pair
from tv.arithmetic.saving import Entry, write_surroundings, write_weights
from tv.checkpoints.checkpoint import Checkpoint

TENSORS = {
    "a": torch.arange(3).to(torch.bfloat16),  # six bytes: what follows it would lie between two float32s
    "b": torch.randn(4, 5),
    "c": torch.tensor([True, False, True]),
    "d": torch.arange(7),
    "e": torch.tensor(1.5),
    "f": torch.randn(2, 3, 4),
}


def entries() -> list[Entry]:
    found = [Entry(key, value.dtype, tuple(value.shape), partial(iter, [value])) for key, value in TENSORS.items()]
    found[-1] = Entry("f", torch.float32, (2, 3, 4), partial(iter, TENSORS["f"]))  # in pieces, as experts come
    return found


@pytest.mark.parametrize(("shard", "files"), [(10**6, 1), (100, 3), (1, 6)])
def test_any_number_of_files_holds_the_same(shard: int, files: int, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_weights(tmp_path, entries(), {"note": "x"}, shard=shard, progress=lambda *at: seen.append(at[1:3]))
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) == files and seen == [(i + 1, 6) for i in range(6)]
    found = {key: value for path in shards for key, value in load_file(path).items()}
    assert found.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (files > 1)
    if files > 1:
        assert [path.name for path in shards] == [f"model-{i + 1:05}-of-{files:05}.safetensors" for i in range(files)]
        told = json.loads(index.read_text())
        assert told["metadata"]["total_size"] == sum(v.numel() * v.element_size() for v in TENSORS.values())
        assert all(key in load_file(tmp_path / name) for key, name in told["weight_map"].items())


WORDS = [
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v3", "special_tokens_map.json"),
    *("added_tokens.json", "tekken.json", "vocab.json", "vocab.txt", "merges.txt", "qwen.tiktoken", "spiece.model"),
    *("sentencepiece.bpe.model", "source.spm", "bpe.codes", "chat_template.jinja", "chat_template.json"),
    *("additional_chat_templates/tool_use.jinja", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("processor_config.json", "generation_config.json", "LICENSE", "LICENSE.md"),
]
OTHERS = [
    *("model.safetensors.index.json", "pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_args.bin"),
    *("trainer_state.json", "rng_state.pth", "quantize_config.json", "hf_quant_config.json", "modeling_own.py"),
    *("corpus.txt", "prompts.json", "results.jsonl", "lid.176.model", "README.md", "x-Q4_0.gguf", "params.json"),
    *("adapter_model.bin", "checkpoint-5/tokenizer.json", "runs/events.out", "additional_chat_templates/x.bin"),
]


def test_what_belongs_to_words_and_generation_comes_along_and_nothing_else(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path, "llama")
    for name in (*WORDS, *OTHERS):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(f"of {name}")
    out = tmp_path / "out"
    out.mkdir()
    write_surroundings(out, base, _opened(base), torch.float32)
    found = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert found == {*WORDS, "config.json"}
    assert all((out / name).read_text() == f"of {name}" for name in WORDS)


def test_an_adapters_files_come_on_top_of_its_bases(tmp_path: Path) -> None:
    places = [tmp_path / "base", tmp_path / "adapter"]
    for place in places:
        (place / "additional_chat_templates").mkdir(parents=True)
        (place / "additional_chat_templates" / "rag.jinja").write_text(place.name)
        (place / "spiece.model").write_text(place.name)
    (places[0] / "tekken.json").write_text("base")
    (tmp_path / "out").mkdir()
    write_surroundings(tmp_path / "out", places[1], _opened(places[1], _opened(places[0])), torch.float32)
    names = ("spiece.model", "additional_chat_templates/rag.jinja", "tekken.json")
    assert [(tmp_path / "out" / name).read_text() for name in names] == ["adapter", "adapter", "base"]


def _opened(path: Path, base: Checkpoint | None = None) -> Checkpoint:
    """A checkpoint without weights."""
    architecture, reader = SimpleNamespace(name="Own"), SimpleNamespace(base=base)
    return Checkpoint(str(path), path, LlamaConfig(), cast(Any, architecture), cast(Any, reader))
