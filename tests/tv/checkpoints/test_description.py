"""What a configuration describes, out of the cache: the same as what transformers' classes say, for every kind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tv
from tests.architectures.test_tiny import REPRESENTATIVES
from tests.architectures.tiny import tiny_config
from tests.pairs import CONFIGS, build_model, build_pair
from tv.architecture import resolve as resolving
from tv.architecture.as_json import from_json, to_json
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.config_differences import Settings
from tv.checkpoints.description import Description
from tv.checkpoints.opening import outline
from tv.checkpoints.tree import Tree

_PUBLISHED = sorted((Path(__file__).parents[2] / "architectures" / "configs").glob("*.json"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNING_PROBES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "descriptions"


@pytest.fixture
def no_classes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and from then on no tree is built of a model's class."""

    def refuse(*_: object) -> None:
        raise AssertionError("a model's class was asked")

    return lambda: [monkeypatch.setattr(resolving, name, refuse) for name in ("skeleton", "resolve")]


def _facts(checkpoint: tv.Checkpoint) -> dict[str, Any]:
    """All that weight space reads of a checkpoint, the values apart."""
    return {
        "architecture": checkpoint.architecture,
        "settings": checkpoint.settings,
        "infos": dict(checkpoint.reader.infos),
        "order": list(checkpoint.reader.infos),
        "beside": dict(checkpoint.beside),
        "outside": list(checkpoint.reader.outside),
        "converted": [list(group) for group in checkpoint.converted],
        "notes": checkpoint.notes,
        "native": checkpoint.native,
        "places": checkpoint.places,
        "fingerprint": checkpoint.fingerprint(),
    }


@pytest.mark.sampled(6)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_checkpoint_is_the_same_with_and_without(
    architecture: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = build_pair(tmp_path, architecture)
    with monkeypatch.context() as patch:
        patch.setenv("TUNING_PROBES_CACHE", "off")
        expected = tv.open_checkpoint(directory)
    assert not cache.exists()
    cold = tv.open_checkpoint(directory)
    (file,) = cache.iterdir()
    text = file.read_text()
    warm = tv.open_checkpoint(directory)
    assert _facts(cold) == _facts(warm) == _facts(expected) and file.read_text() == text
    assert all(torch.equal(warm.read(name), expected.read(name)) for name in expected.values)
    assert warm.config.to_dict() == expected.config.to_dict()


@pytest.mark.parametrize("model_type", REPRESENTATIVES)
def test_every_kind_of_tree_comes_back(model_type: str, tmp_path: Path, cache: Path, no_classes: Any) -> None:
    tiny_config(model_type).save_pretrained(tmp_path / "model")
    cold = outline(tmp_path / "model")
    no_classes()
    warm = outline(tmp_path / "model")
    assert len(list(cache.iterdir())) == 1 and _facts(warm) == _facts(cold)
    _require_written_alike(warm, cold, tmp_path)


def _require_written_alike(warm: tv.Checkpoint, cold: tv.Checkpoint, folder: Path) -> None:
    """config.json out of the cache is what transformers writes, byte for byte."""
    for dtype in (torch.float32, torch.bfloat16):
        config = copy.deepcopy(cold.config)
        config.dtype, config.architectures = dtype, [cold.architecture.name]
        config.save_pretrained(folder / "theirs")
        (folder / "ours").mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoint, "config", property(lambda _: pytest.fail("transformers was asked")))
            warm.write_config(folder / "ours", dtype)
        ours, theirs = ((folder / side / "config.json").read_bytes() for side in ("ours", "theirs"))
        assert ours == theirs and json.loads(ours)["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("name", ["gpt-oss-20b", "llama-4-scout"])  # a quantised one, and one of two parts
def test_a_published_configuration_is_written_as_transformers_writes_it(name: str, tmp_path: Path, cache: Path) -> None:
    (path,) = (path for path in _PUBLISHED if path.stem == name)
    cold, warm = outline(path), outline(path)
    _require_written_alike(warm, cold, tmp_path)


def test_an_older_file_is_written_in_todays_words(tmp_path: Path, cache: Path) -> None:
    """Names that have changed, a quantisation and whatever else stands in it come out as transformers has them."""
    tiny_config("llama").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    values = json.loads(file.read_text())
    theta = values.pop("rope_parameters")["rope_theta"]
    values.pop("dtype", None)
    values |= {"torch_dtype": "float16", "rope_theta": theta, "transformers_version": "4.31.0", "own": {"a": [1.5]}}
    file.write_text(json.dumps(values | {"quantization_config": {"quant_method": "fp8"}, "_name_or_path": "x/y"}))
    cold, warm = outline(tmp_path / "model"), outline(tmp_path / "model")
    _require_written_alike(warm, cold, tmp_path)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["own"] == {"a": [1.5]} and "quantization_config" not in written and "torch_dtype" not in written


def test_a_configuration_that_its_class_changes_is_the_changed_one(tmp_path: Path, cache: Path) -> None:
    """A decoder alone says that it is none of an encoder's once it is built."""
    tiny_config("bart").save_pretrained(tmp_path / "model")
    cold, warm = (outline(tmp_path / "model") for _ in range(2))
    assert not cold.config.is_encoder_decoder
    assert warm.config.to_dict() == cold.config.to_dict() and warm.settings == cold.settings


def test_a_configuration_that_its_class_leaves_as_it_is_needs_no_class(
    tmp_path: Path, cache: Path, no_classes: Any
) -> None:
    tiny_config("qwen2").save_pretrained(tmp_path / "model")
    cold = outline(tmp_path / "model").config
    no_classes()
    assert outline(tmp_path / "model").config.to_json_string() == cold.to_json_string()


@pytest.mark.parametrize("path", [path for path in _PUBLISHED if path.stem in ("gemma-4-e4b", "mistral-small-3.1")])
def test_a_published_configuration_comes_back(path: Path) -> None:
    described = Description(path)
    tree, architecture, settings = described.tree, described.architecture, described.settings
    rows = json.loads(json.dumps([tree.to_json(), to_json(architecture), settings.to_json()]))
    assert Tree.from_json(rows[0], described.get_model) == tree
    assert from_json(rows[1]) == architecture and Settings.from_json(rows[2]) == settings


def test_weights_are_read_without_a_model_class(tmp_path: Path, cache: Path, no_classes: Any) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    expected = tv.geometry(base, tuned)
    no_classes()
    again = tv.geometry(base, tuned)
    assert again.equals(expected) and len(again) > 20


def test_what_transformers_converts_is_converted_by_it(tmp_path: Path, cache: Path) -> None:
    """Tensors that its class makes of others: the class is asked for these alone."""
    base, _ = build_pair(tmp_path, "gpt_oss")
    model = build_model("gpt_oss")
    tv.open_checkpoint(base)
    warm = tv.open_checkpoint(base)
    for name, value in model.named_parameters():
        assert torch.equal(warm.read(name), value.detach().to(warm.read(name).dtype)), name


def test_files_whose_ends_moved_apart_are_untied_every_time(tmp_path: Path, cache: Path) -> None:
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=307,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(written | {"tie_word_embeddings": True}))
    for _ in range(2):
        checkpoint = tv.open_checkpoint(tmp_path / "model")
        assert not checkpoint.architecture.tied and "lm_head.weight" in checkpoint.names


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: text.replace("q_proj", "k_proj", 1),
        lambda text: "",
        lambda text: "\x00" + text,
        lambda text: _signed("[]"),
        lambda text: _signed('{"tree": {}, "architecture": 3}'),
    ],
    ids=["cut", "changed", "empty", "no text", "another's", "of other parts"],
)
def test_a_damaged_or_foreign_file_is_made_again(damage: Any, tmp_path: Path, cache: Path) -> None:
    base, _ = build_pair(tmp_path, "llama")
    expected = _facts(tv.open_checkpoint(base))
    (file,) = cache.iterdir()
    text = file.read_text()
    file.write_text(damage(text))
    assert _facts(tv.open_checkpoint(base)) == expected
    assert file.read_text() == text


def _signed(text: str) -> str:
    import hashlib

    return f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def test_another_configuration_is_another_file(tmp_path: Path, cache: Path) -> None:
    tiny_config("llama").save_pretrained(tmp_path / "model")
    before = outline(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert outline(tmp_path / "model").architecture.n_layers == before.architecture.n_layers + 1
    assert len(list(cache.iterdir())) == 2


def test_no_cache_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("TUNING_PROBES_CACHE", str(tmp_path / "file"))
    tiny_config("llama").save_pretrained(tmp_path / "model")
    assert outline(tmp_path / "model").architecture.n_layers == outline(tmp_path / "model").architecture.n_layers


def test_a_class_of_ones_own_is_never_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither under a type of its own, nor in place of one that transformers has."""

    class OwnConfig(LlamaConfig):
        model_type = "own_llama"

    class OwnForCausalLM(LlamaForCausalLM):
        config_class = OwnConfig

    from transformers.models.auto import configuration_auto, modeling_auto

    for mapping in (configuration_auto.CONFIG_MAPPING, modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING):
        monkeypatch.setattr(mapping, "_extra_content", dict(mapping._extra_content))
    AutoConfig.register("own_llama", OwnConfig)
    AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)
    sizes = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, vocab_size=307)
    OwnConfig(**sizes).save_pretrained(tmp_path / "model")
    assert outline(tmp_path / "model").architecture.name == "OwnForCausalLM"
    assert not cache.exists()
