"""Where a source lies: directories, files and hub ids with a revision."""

import json
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

import tv
from tests.pairs import build_pair
from tv.checkpoints.live import load_model
from tv.checkpoints.location import hub_id, kind_of

INDEX = "model.safetensors.index.json"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/dir", "a/b/c"])
def test_no_such_directory(source: str) -> None:
    with pytest.raises(tv.CheckpointError, match="no such directory"):
        tv.open_checkpoint(source)


def test_a_hub_id_fetches_weights_config_and_tokenizer_alone(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = [
        *("config.json", "model-00001-of-00002.safetensors", INDEX, "tokenizer.json", "vocab.json", "merges.txt"),
        *("pytorch_model.bin", "original/consolidated.safetensors", "onnx/model.onnx", "tf_model.h5", "README.md"),
    ]
    fetched: list[str] = []

    def download(source: str, revision: str, **patterns: list[str]) -> str:
        assert (source, revision) == ("someone/model", "v1")
        fetched.extend(filter_repo_objects(repository, **patterns))
        return str(pair[0])

    monkeypatch.setattr("tv.checkpoints.location.snapshot_download", download)
    assert tv.open_checkpoint("someone/model", "v1").source == "someone/model@v1"
    assert fetched == repository[:6]


def test_a_revision_in_the_hub_id(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(source: str, revision: str | None, **_: object) -> str:
        asked.append((source, revision))
        return str(pair[0])

    monkeypatch.setattr("tv.checkpoints.location.snapshot_download", download)
    assert tv.open_checkpoint("someone/model@main~2").source == "someone/model@main~2"
    assert load_model("someone/model@abc").config.num_hidden_layers == 3
    tv.open_checkpoint("someone/model")
    assert asked == [("someone/model", "main~2"), ("someone/model", "abc"), ("someone/model", None)]


@pytest.mark.parametrize("source", ["a/b", "a@v2", "@v2", "a/b@", "a@b@c"])
def test_hub_ids(source: str) -> None:
    expected = {"a@v2": ("a", "v2"), "a@b@c": ("a@b", "c")}
    assert hub_id(source) == expected.get(source, (source, None))


def test_a_directory_with_an_at_sign(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair[0].parent)
    pair[0].rename("model@v1")
    assert len(tv.open_checkpoint("model@v1").names)


def test_a_hub_id_that_does_not_exist_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network\nand a second line")

    monkeypatch.setattr("tv.checkpoints.location.snapshot_download", refuse)
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
