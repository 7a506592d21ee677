"""Where a source lies: directories, files and hub ids with a revision."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import tv
from probes.suite import load_suite
from tests.pairs import build_model, build_pair, build_tokenizer
from tv.checkpoints.live import load_model, load_tokenizer
from tv.checkpoints.location import HubId, kind_of, place_of

INDEX = "model.safetensors.index.json"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/dir", "a/b/c", "~nobody-here/m"])
def test_no_such_directory(source: str) -> None:
    with pytest.raises(tv.CheckpointError, match="no such directory"):
        tv.open_checkpoint(source)


def test_a_hub_id_fetches_weights_config_and_tokenizer_alone(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [
        *("config.json", "model-00001-of-00002.safetensors", INDEX, "tokenizer.json", "vocab.json", "merges.txt"),
        *("tekken.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model.v3", "qwen.tiktoken", "vocab.txt"),
        *("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "preprocessor_config.json", "LICENSE"),
    ]
    repository = [
        *wanted,
        *("pytorch_model.bin", "original/consolidated.safetensors", "onnx/model.onnx", "tf_model.h5", "README.md"),
        *("original/params.json", "original/tokenizer.model", "checkpoint-5/optimizer.pt", "tokenizer/weights.bin"),
        *("x-Q4_0.gguf", "training_args.bin", "corpus.txt", "modeling_own.py", "lid.176.model"),
    ]
    fetched: list[str] = []

    def download(source: str, revision: str, **patterns: list[str]) -> str:
        assert (source, revision) == ("someone/model", "v1")
        fetched.extend(filter_repo_objects(repository, **patterns))
        return str(pair[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert tv.open_checkpoint("someone/model", "v1").source == "someone/model@v1"
    assert fetched == wanted


def test_a_revision_in_the_hub_id(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(source: str, revision: str | None, **_: object) -> str:
        asked.append((source, revision))
        return str(pair[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert tv.open_checkpoint("someone/model@main~2").source == "someone/model@main~2"
    assert load_model("someone/model@abc").config.num_hidden_layers == 3
    tv.open_checkpoint("someone/model")
    assert asked == [("someone/model", "main~2"), ("someone/model", "abc"), ("someone/model", None)]


@pytest.mark.parametrize("source", ["a/b", "a@v2", "@v2", "a/b@", "a@b@c", ""])
def test_hub_ids(source: str) -> None:
    expected = {"a@v2": HubId("a", "v2"), "a@b@c": HubId("a@b", "c")}
    assert place_of(source) == expected.get(source, HubId(source))
    assert str(place_of(source)) == source


def test_a_revision_beside_the_name_comes_first() -> None:
    assert place_of("a/b@v2", "v3") == place_of("a/b", "v3") == HubId("a/b", "v3")


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """`run`, and beside it `run@step100` and `run@`, with weights and a tokenizer of their own. Its parent is here."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("run", "run@step100", "run@")):
        build_model("llama", seed=seed).save_pretrained(tmp_path / name)
        tokenizer = build_tokenizer()
        tokenizer.add_tokens([f"<{name}>"])
        tokenizer.save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in ("run", "run@step100", "run@")}


def _ways(path: Path) -> list[str | Path]:
    """A directory's names, absolute and relative."""
    return [str(path), path.name, Path(path.name)]


def test_the_disk_is_asked_before_an_at_sign_is_a_revision(steps: dict[str, Path]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    for seed, path in enumerate(steps.values()):
        expected = build_model("llama", seed=seed).get_parameter(name)
        for source in _ways(path):
            assert torch.equal(tv.open_checkpoint(source).tensor(name), expected)
            assert torch.equal(load_model(source).get_parameter(name), expected)
            assert torch.equal(load_model(source, trust_remote_code=True).get_parameter(name), expected)
            assert f"<{path.name}>" in load_tokenizer(source).get_vocab()
            assert f"<{path.name}>" in load_tokenizer(load_model(source)).get_vocab()
            assert tv.open_checkpoint(source, "main").source == str(source)


def test_a_revision_of_a_directory_is_refused_and_never_the_directory_itself(steps: dict[str, Path]) -> None:
    for source in _ways(steps["run"].parent / "run@step200"):
        for action in (tv.open_checkpoint, load_model, load_tokenizer):
            with pytest.raises(tv.CheckpointError, match=r"no such directory; .*run is a local .* out '@step200'"):
                action(source)
        with pytest.raises(tv.CheckpointError, match="no such directory; "):
            load_model(source, trust_remote_code=True)


def test_a_suite_names_directories_with_an_at_sign(steps: dict[str, Path]) -> None:
    (steps["run"].parent / "p.jsonl").write_text('{"prompt": "The heart", "target": " pumps"}\n')
    (steps["run"].parent / "suite.yaml").write_text(
        "name: steps\nbase: run\ntuned: {late: run@step100}\nprompts: [{file: p.jsonl}]\n"
    )
    suite = load_suite("suite.yaml")
    assert suite.base == str(steps["run"]) and suite.tuned == {"late": str(steps["run@step100"])}
    given = load_suite("suite.yaml", base="run@step100", tuned=steps["run"])
    assert given.base == str(steps["run@step100"])
    assert "<run@step100>" in load_tokenizer(given.base).get_vocab()


def test_an_adapter_over_a_directory_with_an_at_sign(steps: dict[str, Path]) -> None:
    adapter = steps["run"].parent / "adapter@1"
    config = LoraConfig(r=2, target_modules=["q_proj"])
    base = AutoModelForCausalLM.from_pretrained("run@step100")
    get_peft_model(base, config).save_pretrained(adapter, save_embedding_layers=False)
    for source in _ways(adapter):
        opened = tv.open_checkpoint(source)
        assert opened.base is not None and opened.base.source == "run@step100"
        assert not any("says that its base is" in note for note in opened.notes)
        assert "<run@step100>" in load_tokenizer(source).get_vocab()
    assert any("says that its base is run@step100" in note for note in tv.open_checkpoint(adapter, base="run").notes)


def test_a_hub_id_that_does_not_exist_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network\nand a second line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    for action in (tv.open_checkpoint, load_model):
        with pytest.raises(
            tv.CheckpointError, match=r"someone/nothing@v1: no such directory.*\(no network\)"
        ) as caught:
            action("someone/nothing@v1")
        assert "\n" not in str(caught.value)


def test_kinds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert kind_of(pair[0]) == "model"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({}))
    assert kind_of(adapter) == "adapter"
    for name, kind in (("x.safetensors", "vector"), ("x.gguf", "gguf")):
        (tmp_path / name).touch()
        assert kind_of(tmp_path / name) == kind
    (tmp_path / "notes.txt").touch()
    with pytest.raises(tv.CheckpointError, match=r"notes\.txt is a file; pass the directory"):
        kind_of(tmp_path / "notes.txt")
    (pair[0] / "x.gguf").touch()
    assert kind_of(pair[0]) == "model"  # its own weights come before a quantised copy
