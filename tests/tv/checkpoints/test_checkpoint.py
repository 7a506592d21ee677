"""Reading checkpoints: lazily, from every layout, and refusing what is broken in one line."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import tv
from tests.pairs import build_model, build_pair
from tests.tv.checkpoints.test_parameters import experts, open_files as read_files
from tv.architecture.anatomy import Module
from tv.checkpoints.live_tensors import LiveTensors
from tv.checkpoints.vector import VectorTensors

INDEX = "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def _shard(path: Path, size: str = "20KB") -> None:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size=size)
    assert len(list(path.glob("*.safetensors"))) > 2


def test_sharded_equals_single(pair: tuple[Path, Path]) -> None:
    whole = tv.open_checkpoint(pair[0])
    single = {name: whole.tensor(name) for name in whole.names}
    _shard(pair[0])
    sharded = tv.open_checkpoint(pair[0])
    assert set(sharded.names) == set(single)
    assert all(torch.equal(sharded.tensor(name), value) for name, value in single.items())


def test_older_names_are_the_models_own(tmp_path: Path) -> None:
    """Without the base model's prefix, and with a buffer that today's model does not keep."""
    base, _ = build_pair(tmp_path, "gpt2")
    own = tv.open_checkpoint(base)
    expected = {name: own.tensor(name) for name in own.names}
    tensors = load_file(base / "model.safetensors")
    older = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    save_file(older | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, base / "model.safetensors")
    checkpoint = tv.open_checkpoint(base)
    assert set(checkpoint.names) == set(expected)
    assert all(torch.equal(checkpoint.tensor(name), value) for name, value in expected.items())


def test_opening_reads_no_tensor(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("tv.checkpoints.tensors._values", refuse)
    checkpoint = tv.open_checkpoint(pair[0])
    assert checkpoint.architecture.n_layers == 3
    assert checkpoint.info("model.norm.weight").shape == (48,)
    tv.check_pair(checkpoint, tv.open_checkpoint(pair[1]))


def test_fingerprint_sees_a_changed_tensor_and_not_its_place(pair: tuple[Path, Path]) -> None:
    before = tv.open_checkpoint(pair[0]).fingerprint()
    assert before == tv.open_checkpoint(pair[0]).fingerprint()
    assert before["structure"] == tv.open_checkpoint(pair[1]).fingerprint()["structure"]
    assert before["content"] != tv.open_checkpoint(pair[1]).fingerprint()["content"]
    assert before["parameters"] == sum(p.numel() for p in build_model("llama").parameters())


def _truncate(n: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        file = path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:n])

    return spoil


def _text(name: str, content: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_text(content) and None


def _index_alone(content: str) -> Callable[[Path], None]:
    """An index that is read: beside model.safetensors it would be left over."""

    def spoil(path: Path) -> None:
        (path / "model.safetensors").rename(path / "model-00001-of-00001.safetensors")
        (path / INDEX).write_text(content)

    return spoil


def _lose_a_shard(path: Path) -> None:
    _shard(path)
    next(path.glob("model-00002*")).unlink()


def _cut_a_shard(path: Path) -> None:
    _shard(path)
    file = next(path.glob("model-00002*"))
    file.write_bytes(file.read_bytes()[:-8])


def _escape(path: Path) -> None:
    _shard(path)
    index = json.loads((path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "../../secret.safetensors"
    (path / INDEX).write_text(json.dumps(index))


def _pickle(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _drop(name: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        del tensors[name]
        save_file(tensors, path / "model.safetensors")

    return spoil


def _entry(**changes: object) -> Callable[[Path], None]:
    """Change what the header says of one tensor."""

    def spoil(path: Path) -> None:
        file = path / "model.safetensors"
        content = file.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        header[UP].update(changes)
        text = json.dumps(header).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return spoil


def _configured(**changes: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | changes))

    return spoil


def _stored_as(dtype: torch.dtype, **config: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        save_file(tensors | {UP: tensors[UP].to(dtype)}, path / "model.safetensors")
        _configured(**config)(path)

    return spoil


def _in_parts(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors[UP.replace("weight", "qweight")] = tensors.pop(UP).to(torch.int32)
    save_file(tensors, path / "model.safetensors")
    _configured(quantization_config={"quant_method": "gptq", "bits": 4})(path)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty file": (_truncate(0), "model.safetensors"),
    "half a header length": (_truncate(5), "model.safetensors"),
    "cut in the header": (_truncate(300), "model.safetensors"),
    "cut in the tensors": (_truncate(50_000), "truncated"),
    "header no JSON": (_text("model.safetensors", "\x05" + "\0" * 7 + "{oops" + " " * 20), "model.safetensors"),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json"),
    "config no JSON": (_text("config.json", "{"), "config.json"),
    "config a list": (_text("config.json", "[]"), "config.json"),
    "unknown model type": (_text("config.json", '{"model_type": "no_such_thing"}'), "no_such_thing"),
    "no model type": (_text("config.json", "{}"), "config.json"),
    "a shard is missing": (_lose_a_shard, "model-00002"),
    "a shard is cut": (_cut_a_shard, "model-00002"),
    "an index that leads outside": (_escape, "secret"),
    "an index of nonsense": (_index_alone('{"weight_map": 3}'), INDEX),
    "pickled weights": (_pickle, "holds pickled weights only, which are not read; save them as safetensors"),
    "a tensor is missing": (_drop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight"),
    "an unknown dtype": (_entry(dtype="Q9"), "Q9"),
    "a place before the file": (_entry(data_offsets=[-5, 9]), UP),
    "a place that ends before it starts": (_entry(data_offsets=[900, 100]), UP),
    "a place too small": (_entry(data_offsets=[0, 4]), "model.safetensors"),
    "a shape that is none": (_entry(shape=["a"]), UP),
    "a config of another size": (_configured(intermediate_size=81), "config.json says [81, 48]"),
    "a config with no heads": (_configured(num_attention_heads=0), "config.json"),
    "a config with words for numbers": (_configured(hidden_size="wide"), "hidden_size"),
    "integers": (_stored_as(torch.int8), "quantised"),
    "float8 with scales": (_stored_as(torch.float8_e4m3fn, quantization_config={"quant_method": "fp8"}), "quantised"),
    "quantised in parts": (_in_parts, "quantised"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints_are_refused_in_one_line(case: str, pair: tuple[Path, Path]) -> None:
    spoil, expected = BROKEN[case]
    spoil(pair[1])
    with pytest.raises(tv.InputError) as caught:
        tv.weights(*pair, heads=False)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_is_named(value: float, pair: tuple[Path, Path]) -> None:
    tensors = load_file(pair[1] / "model.safetensors")
    tensors["model.layers.2.self_attn.k_proj.weight"][3, 4] = value
    save_file(tensors, pair[1] / "model.safetensors")
    with pytest.raises(tv.CheckpointError, match=r"model.layers.2.self_attn.k_proj.weight.*\[3, 4\]"):
        tv.ssa(*pair)


def test_large_but_finite_values_are_not_taken_for_inf(pair: tuple[Path, Path]) -> None:
    tensors = load_file(pair[1] / "model.safetensors")
    tensors["model.norm.weight"][:] = 3e38
    save_file(tensors, pair[1] / "model.safetensors")
    assert float(tv.open_checkpoint(pair[1]).tensor("model.norm.weight").max()) > 2e38


def test_live_models_speak_of_dtypes_as_files_do(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path / "b", dtype=torch.bfloat16)
    on_disk, live = tv.open_checkpoint(base), tv.open_checkpoint(build_model("llama").bfloat16())
    assert live.dtype == on_disk.dtype == "BF16"
    assert live.fingerprint()["structure"] == on_disk.fingerprint()["structure"]
    assert not any("stored as" in note for note in tv.check_pair(on_disk, live).notes)


def test_a_live_model_without_its_weights_is_refused() -> None:
    with pytest.raises(tv.CheckpointError, match="not in memory"):
        tv.open_checkpoint(build_model("llama").to("meta"))


@pytest.mark.parametrize("form", ["apart", "fused", "live"])
def test_a_module_of_one_expert(form: str, tmp_path: Path) -> None:
    """W, T and a tuning vector's T of one expert's matrix, without the others."""
    model, path = experts(tmp_path, "mixtral")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    stored = dict(model.named_parameters())[name].detach().clone()
    if form == "fused":
        save_file(dict(model.state_dict()), path / "model.safetensors")
    tensors = LiveTensors("live", model) if form == "live" else read_files(path)
    architecture = tv.open_checkpoint(build_model("llama")).architecture  # the place is given by hand
    base = tv.Checkpoint("base", None, model.config, architecture, tensors)
    module = Module(1, "up", "linear", "mlp", "model.layers.1.mlp.experts", name, (80, 48), ((80, 160),), expert=7)
    assert torch.equal(base.matrix(module), stored[7, 80:])

    read: list[tuple[str, int]] = []

    def expert(parameter: str, index: int) -> torch.Tensor:
        read.append((parameter, index))
        return torch.full((160, 48), float(index))

    vector = tv.TuningVector({n: base.info(n).shape for n in base.names}, lambda n: pytest.fail(n), {}, expert)
    tuned = tv.Checkpoint("tuned", None, model.config, architecture, VectorTensors("vector", vector, base))
    assert torch.equal(tuned.delta_matrix(module, base), torch.full((80, 48), 7.0))
    assert torch.equal(tuned.matrix(module), stored[7, 80:] + 7)
    assert set(read) == {(name, 7)}
    again = tv.Checkpoint("again", None, model.config, architecture, tensors)
    assert torch.equal(again.delta_matrix(module, base), torch.zeros(80, 48))


def test_a_fingerprint_is_taken_once(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tv.open_checkpoint(pair[0])
    first = checkpoint.fingerprint()
    first["content"] = "changed by a caller"
    monkeypatch.setattr(checkpoint, "reader", None)
    assert checkpoint.fingerprint()["content"] not in (None, "changed by a caller")
