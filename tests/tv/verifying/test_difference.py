"""`tv diff`: everything that was changed in a copy of a checkpoint is named, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tv
from tests.command import call
from tests.pairs import build_model, build_tokenizer
from tv.cli import main


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "a model"
    build_model("llama").save_pretrained(path)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}\n{{ message.content }}\n{% endfor %}"
    tokenizer.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "eos_token_id": 1}))
    return path


def _edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def test_a_copy_is_the_same(a: Path, tmp_path: Path) -> None:
    b = shutil.copytree(a, tmp_path / "b")
    assert tv.diff(a, b).same and tv.diff(a, b, headers=True).values is None
    build_model("llama").save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    shards = tv.diff(a, tmp_path / "sharded")
    assert not shards.values and not shards.only_a and not shards.dtypes


def test_what_was_changed_is_named_and_nothing_else(a: Path, tmp_path: Path) -> None:
    b = shutil.copytree(a, tmp_path / "b")
    tensors = load_file(b / "model.safetensors")
    gate, norm = "model.layers.1.mlp.gate_proj.weight", "model.norm.weight"
    tensors[gate][2, 3] += 0.5
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].half()
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:300].clone()
    del tensors[norm]
    save_file(tensors | {"lora_A": torch.zeros(2)}, b / "model.safetensors")
    _edit(b / "config.json", rms_norm_eps=0.5, transformers_version="0", rope_parameters={"rope_theta": 5.0})
    _edit(b / "generation_config.json", temperature=0.1)
    template = "{% for message in messages %}\n\x1b[31m{{ message.content }}\n{% endfor %}"
    for file in (b / "chat_template.jinja", b / "tokenizer_config.json"):
        if file.suffix == ".jinja" and file.exists():
            file.write_text(template)
    words = json.loads((b / "tokenizer.json").read_text())
    words["added_tokens"].append({**words["added_tokens"][0], "id": 999, "content": "<new>"})
    words["normalizer"] = {"type": "Lowercase"}
    (b / "tokenizer.json").write_text(json.dumps(words))

    found = tv.diff(a, b)
    assert (found.only_a, found.only_b) == ((norm,), ("lora_A",))
    assert [name for name, *_ in found.shapes] == ["model.embed_tokens.weight"]
    assert found.dtypes == (("model.layers.0.mlp.up_proj.weight", "F32", "F16"),)
    settings = {one.key: one for one in found.config}
    assert {"rms_norm_eps", "transformers_version", "rope_parameters.rope_theta"} <= settings.keys()
    assert settings["rms_norm_eps"].read and not settings["transformers_version"].read
    assert [(one.key, one.a, one.b) for one in found.generation] == [("temperature", 0.7, 0.1)]
    assert any("<new>" in line for line in found.tokenizer) and any("normalizer" in line for line in found.tokenizer)
    assert "+\x1b[31m{{ message.content }}" in found.template and "-{{ message.content }}" in found.template
    assert found.values is not None
    moved = {one.name: one for one in found.values}
    assert moved.keys() == {gate, "model.layers.0.mlp.up_proj.weight"}
    assert moved[gate].off == 1 and moved[gate].largest == pytest.approx(0.5)
    assert tv.diff(a, b, headers=True).config == found.config


def test_other_architectures_adapters_and_broken_files(a: Path, tmp_path: Path) -> None:
    build_model("gpt2").save_pretrained(tmp_path / "gpt2")
    found = tv.diff(a, tmp_path / "gpt2")
    assert found.only_a and found.only_b and not found.values and not found.same
    vector = tmp_path / "t.safetensors"
    tv.extract(str(a), str(a)).save(vector)
    assert tv.diff(vector, vector).same and tv.diff(a, vector, headers=True).kinds == ("model", "vector")
    (tmp_path / "adapter").mkdir()
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2)}, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    other = shutil.copytree(tmp_path / "adapter", tmp_path / "adapter2")
    (other / "adapter_config.json").write_text('{"r": 8}')
    assert [one.key for one in tv.diff(tmp_path / "adapter", other).config] == ["r"]
    (other / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(tv.CheckpointError, match="not a readable safetensors"):
        tv.diff(a, other)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(tv.CheckpointError, match="no safetensors"):
        tv.diff(a, tmp_path / "nothing")


def test_the_command_says_it_and_has_its_status(
    a: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, capsys, main, "diff", a, a)[0] == 0
    b = shutil.copytree(a, tmp_path / "b")
    (b / "chat_template.jinja").write_text("\x1b[31m")
    status, out, _ = call(monkeypatch, capsys, main, "diff", a, b, "--headers")
    assert status == 3 and "\x1b[31m" not in out and "\\x1b[31m" in out
    assert call(monkeypatch, capsys, main, "diff", a, tmp_path / "none.safetensors")[0] == 2
    status, out, _ = call(monkeypatch, capsys, main, "diff", "data/models/base", "data/organisms/persona", "--headers")
    assert status == 3 and "lora_alpha" not in out and "of kind adapter" in out
    assert call(monkeypatch, capsys, main, "verify", a, a, a)[0] == 4  # a ΔW that is zero everywhere
    status, out, _ = call(monkeypatch, capsys, main, "verify", a, a, a, "--json")
    assert status == json.loads(out)["status"] == 4
    assert call(monkeypatch, capsys, main, "verify", a, a)[0] == 2


def test_headers_wait_for_no_library(a: Path) -> None:
    program = (
        "import sys; from tv.verifying.difference import diff; assert diff(*sys.argv[1:], headers=True).same; "
        "print([name for name in ('torch', 'transformers', 'pandas', 'numpy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program, a, a], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
