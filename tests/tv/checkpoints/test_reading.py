"""Folders as people have them: weight space reads of each what the model that transformers loads holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tv
from tests.pairs import build_pair
from tv.checkpoints.live import load_model
from tv.checkpoints.live_proof import as_read
from tv.checkpoints.tensors import Stored
from tv.checkpoints.ties import is_tied

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
_SIZES |= {"num_key_value_heads": 1, "head_dim": 10, "vocab_size": 53, "max_position_embeddings": 32}


def _weights(seed: int = 0, tied: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**_SIZES, tie_word_embeddings=tied))
    names = dict(model.named_parameters())
    return {name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in names.items()}


def _folder(path: Path, weights: dict[str, Tensor], *, tied: bool = False, file: str = "model.safetensors") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    LlamaConfig(**_SIZES, tie_word_embeddings=tied, architectures=["LlamaForCausalLM"]).save_pretrained(path)
    save_file(weights, path / file, {"format": "pt"})
    return path


def _shard(path: Path, weights: dict[str, Tensor], parts: int = 2) -> None:
    names = sorted(weights)
    files = {name: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, path / file, {"format": "pt"})
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def _logits(path: Path) -> Tensor:
    """What transformers alone computes of a folder."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.arange(20)[None]).logits


def _same(path: Path) -> tv.Checkpoint:
    """The checkpoint, which must read every parameter that transformers loads."""
    checkpoint, live = tv.open_checkpoint(path), AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    held = dict(live.named_parameters())
    assert held.keys() == set(checkpoint.names)
    for name, value in held.items():
        assert torch.equal(checkpoint.tensor(name).float(), value), name
    return checkpoint


def test_a_single_file_wins_over_the_index_of_an_older_save(tmp_path: Path) -> None:
    base, older, newer = (_weights(seed) for seed in (0, 1, 2))
    tuned = _folder(tmp_path / "tuned", newer)
    _shard(tuned, older)
    checkpoint = _same(tuned)
    assert len(checkpoint.notes) == 1 and "model.safetensors is read" in checkpoint.notes[0]
    vector = tv.extract(_folder(tmp_path / "base", base), tuned)
    assert torch.equal(vector[HEAD], newer[HEAD] - base[HEAD])


def test_an_index_without_its_shards_is_left_over(tmp_path: Path) -> None:
    path = _folder(tmp_path, _weights())
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {HEAD: "gone.safetensors"}}))
    assert "names other files" in _same(path).notes[0]
    (path / "model.safetensors.index.json").write_text("{")  # a damaged one is left over too
    assert "names other files" in _same(path).notes[0]


def test_the_configuration_may_name_its_file(tmp_path: Path) -> None:
    path = _folder(tmp_path, _weights(1))
    save_file(_weights(2), path / "other.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    assert torch.equal(_same(path).tensor(HEAD), _weights(2)[HEAD])
    (path / "config.json").write_text(json.dumps(config | {"transformers_weights": "../other.safetensors"}))
    with pytest.raises(tv.CheckpointError, match=r"transformers_weights is '../other.safetensors'"):
        tv.open_checkpoint(path)


def test_files_of_torchs_storage_writer(tmp_path: Path) -> None:
    path = _folder(tmp_path, _weights(3), file="shard-00001-model-00001-of-00001.safetensors")
    assert torch.equal(_same(path).tensor(HEAD), _weights(3)[HEAD])
    with torch.inference_mode():
        assert torch.equal(load_model(path)(torch.arange(20)[None]).logits, _logits(path))


def test_a_tied_flag_over_two_matrices(tmp_path: Path) -> None:
    """Both are kept, as transformers keeps them: the unembedding's T is its own."""
    base = _weights(0, tied=True)
    heads = [_weights(seed)[HEAD] for seed in (1, 2)]
    paths = [_folder(tmp_path / str(i), base | {HEAD: head}, tied=True) for i, head in enumerate(heads)]
    for path in paths:
        checkpoint = _same(path)
        assert not checkpoint.architecture.modules[-1].tied and not checkpoint.config.tie_word_embeddings
    rows = tv.geometry(*paths, heads=False).set_index("module")
    assert rows.delta_norm["unembed"] == pytest.approx(float((heads[1] - heads[0]).norm()), rel=1e-6)
    assert rows.delta_norm["embed"] == 0
    applied = tv.apply(paths[0], {paths[1]: 1.0}, out=tmp_path / "out", conflicts=False)
    assert not any("fingerprint" in note for note in applied.notes)
    assert not json.loads((applied.path / "config.json").read_text())["tie_word_embeddings"]
    assert torch.allclose(_logits(applied.path), _logits(paths[1]), atol=1e-6)


def test_two_matrices_that_rounding_makes_equal_stay_two(tmp_path: Path) -> None:
    """In bfloat16 the two are one, and transformers ties them; their T in float32 is not zero."""
    weights = _weights(0, tied=True)
    weights |= {EMBED: weights[EMBED].bfloat16().float()}
    path = _folder(tmp_path, weights | {HEAD: weights[EMBED] * (1 + 2**-12)}, tied=True)
    live = load_model(path, dtype="bfloat16")
    assert not is_tied(live) and torch.equal(live.lm_head.weight, live.model.embed_tokens.weight)
    assert HEAD in tv.open_checkpoint(path).names


@pytest.mark.parametrize("only", [EMBED, HEAD])
def test_a_tied_matrix_is_stored_under_either_name(tmp_path: Path, only: str) -> None:
    weights = _weights(4, tied=True)
    matrix = weights.pop(EMBED)
    path = _folder(tmp_path, weights | {only: matrix}, tied=True)
    assert torch.equal(_same(path).tensor(EMBED), matrix)
    moved = tv.apply(path, {tv.extract(path, path): 1.0}, out=tmp_path / "moved", conflicts=False).path
    assert torch.equal(_logits(moved), _logits(path)) and only in load_file(moved / "model.safetensors")


def test_a_matrix_that_no_file_holds_is_no_random_one(tmp_path: Path) -> None:
    """transformers draws what is missing, and only warns."""
    weights = _weights()
    del weights[HEAD]
    path = _folder(tmp_path, weights)
    with pytest.raises(tv.CheckpointError, match=r"'lm_head\.weight' is missing; the checkpoint is incomplete"):
        load_model(path)


def test_two_equal_matrices_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the largest of a model, which a run opens several times; a file of other values is another file."""
    weights = _weights(0, tied=True)
    path = _folder(tmp_path, weights | {HEAD: weights[EMBED].clone()}, tied=True)
    compared: list[str] = []
    load = Stored.load
    monkeypatch.setattr(Stored, "load", lambda self, index=-1: (compared.append(self.name), load(self, index))[1])
    assert all(tv.open_checkpoint(path).architecture.tied for _ in range(3))
    assert sorted(compared) == [HEAD, EMBED]
    other = weights[EMBED].clone()
    other[26, 12] += 1
    save_file(weights | {HEAD: other}, path / "model.safetensors", {"format": "pt"})
    assert not tv.open_checkpoint(path).architecture.tied


def test_a_tied_base_and_an_untied_tuned_model_are_measured(tmp_path: Path) -> None:
    """What peft's merge of an adapter with an unembedding of its own gives."""
    base, head = _weights(0, tied=True), _weights(1)[HEAD]
    tied = _folder(tmp_path / "base", base, tied=True)
    untied = _folder(tmp_path / "tuned", base | {HEAD: head})
    for one, other, sign in ((tied, untied, 1), (untied, tied, -1)):
        rows = tv.geometry(one, other, heads=False).set_index("module")
        assert rows.delta_norm["embed"] == 0
        vector = tv.extract(one, other)
        assert torch.equal(vector[HEAD], sign * (head - base[EMBED]))
        applied = tv.apply(one, {other: 1.0}, out=tmp_path / str(sign), conflicts=False)
        out = applied.path
        assert not any("fingerprint" in note for note in applied.notes)
        assert torch.allclose(_logits(out), _logits(other), atol=1e-6)
    vector = tv.extract(tied, untied)
    vector.save(tmp_path / "t.safetensors")
    assert torch.allclose(tv.open_checkpoint(tmp_path / "t.safetensors").tensor(HEAD), head, atol=1e-6)
    with torch.inference_mode():
        live = load_model(tmp_path / "t.safetensors")(torch.arange(20)[None]).logits
    assert torch.allclose(live, _logits(untied), atol=1e-6)


def test_vectors_of_both_forms_move_one_model(tmp_path: Path) -> None:
    """A vector that moves the tied matrix moves both, where another vector parts them."""
    base = _weights(0, tied=True)
    tied = _folder(tmp_path / "base", base, tied=True)
    both = _folder(tmp_path / "both", base | {EMBED: base[EMBED] + 1}, tied=True)
    apart = _folder(tmp_path / "apart", base | {HEAD: base[EMBED] + 3})
    out = tv.apply(tied, {both: 1.0, apart: 1.0}, out=tmp_path / "out").path
    written = tv.open_checkpoint(out)
    assert torch.allclose(written.tensor(EMBED), base[EMBED] + 1) and torch.allclose(
        written.tensor(HEAD), base[EMBED] + 4
    )
    norms = tv.cosine(tied, {"both": both, "apart": apart}, level="whole")
    step = float(base[EMBED].numel())
    assert norms.cosine[0] == pytest.approx(3 * step / ((2 * step) ** 0.5 * 3 * step**0.5), rel=1e-5)


def test_vectors_of_both_forms_add_up(tmp_path: Path) -> None:
    """In memory as `tv.apply` does it, from pairs and from files: the sum moves two matrices."""
    base = _weights(0, tied=True)
    step, head = torch.randn(base[EMBED].shape), torch.randn(base[EMBED].shape)
    tied = _folder(tmp_path / "base", base, tied=True)
    both = tv.extract(tied, _folder(tmp_path / "both", base | {EMBED: base[EMBED] + step}, tied=True))
    apart = tv.extract(tied, _folder(tmp_path / "apart", base | {HEAD: base[EMBED] + head}))
    both.save(tmp_path / "both.safetensors")
    for one in (both, tv.TuningVector.load(tmp_path / "both.safetensors"), 0.5 * both + 0.5 * both):
        for total, sign in ((one + apart, 1), (apart + one, 1), (one - apart, -1), (one + 0.5 * (apart + apart), 1)):
            assert torch.allclose(total[EMBED], step, atol=1e-5)
            assert torch.allclose(total[HEAD], step + sign * head, atol=1e-5)
        pairs = torch.cat([step, step]).flatten(), torch.cat([torch.zeros_like(step), head]).flatten()
        assert one.cosine(apart) == pytest.approx(float(torch.cosine_similarity(*pairs, 0)), rel=1e-4)
    assert HEAD not in both.shapes and HEAD not in (both + both).shapes
    with pytest.raises(tv.CheckpointError, match="is in one only"):
        tv.TuningVector({EMBED: both.shapes[EMBED]}, both.__getitem__, {}) + apart


def test_a_live_model_that_is_tied_is_told_how_to_follow_a_vector_that_parts_it(tmp_path: Path) -> None:
    base = _weights(0, tied=True)
    tied = _folder(tmp_path / "base", base, tied=True)
    vector = tv.extract(tied, _folder(tmp_path / "apart", base | {HEAD: base[EMBED] + 3}))
    model = load_model(tied)
    with pytest.raises(tv.InputError, match=r"ties .*; untie the model first: model\.lm_head\.weight = ") as refusal:
        tv.Mover(model, [vector])
    exec(str(refusal.value).rpartition(": ")[2], {"model": model, "torch": torch})
    with tv.variant(model, {vector: 1.0}), torch.inference_mode():
        assert torch.allclose(model(torch.arange(20)[None]).logits, _logits(tmp_path / "apart"), atol=1e-5)


WRAPPERS: dict[str, Callable[[str], str]] = {
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module.": lambda name: f"module.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "foo.": lambda name: f"foo.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "_orig_mod. inside": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "_fsdp_wrapped_module. twice": lambda name: (
        "_fsdp_wrapped_module." + name.replace(".mlp.", ".mlp._fsdp_wrapped_module.")
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_of_a_wrapped_model_are_read_through(tmp_path: Path, wrapper: str) -> None:
    weights = _weights(5)
    plain = _folder(tmp_path / "plain", weights)
    path = _folder(tmp_path / "wrapped", {WRAPPERS[wrapper](name): value for name, value in weights.items()})
    checkpoint = tv.open_checkpoint(path)
    assert all(torch.equal(checkpoint.tensor(name), value) for name, value in weights.items())
    assert any("of a wrapped model, and are read without it" in note for note in checkpoint.notes)
    with torch.inference_mode():
        assert torch.equal(load_model(path)(torch.arange(20)[None]).logits, _logits(plain))
    written = tv.apply(path, {tv.extract(path, path): 1.0}, out=tmp_path / "out", conflicts=False).path
    assert load_file(written / "model.safetensors").keys() == weights.keys()


def test_tensors_of_another_model(tmp_path: Path) -> None:
    weights = {f"{'abc'[i % 3]}.{i}.weight": value for i, value in enumerate(_weights().values())}
    with pytest.raises(tv.CheckpointError, match=r"none of its tensors \('.*' first\) is a parameter of Llama"):
        tv.open_checkpoint(_folder(tmp_path, weights))


def test_a_prefix_that_is_not_the_whole_trouble_is_refused(tmp_path: Path) -> None:
    weights = {f"module.{name}": value for name, value in _weights().items()}
    del weights["module.model.norm.weight"]
    with pytest.raises(tv.CheckpointError, match=r"prefix 'module\.' .*without it 'model.norm.weight' is missing"):
        tv.open_checkpoint(_folder(tmp_path, weights))


def test_the_proof_finds_another_model(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "mixtral")
    checkpoint = tv.open_checkpoint(tuned)
    assert as_read(load_model(tuned), checkpoint)
    with pytest.raises(tv.CheckpointError, match="transformers loads other values of"):
        as_read(load_model(base), checkpoint)


def _in_float8(weights: dict[str, Tensor], chosen: list[str], block: tuple[int, int]) -> dict[str, Tensor]:
    """The weights, those chosen in float8 with a scale a block beside them."""
    stored = dict(weights)
    for name in chosen:
        rows, cols = weights[name].shape
        scale = torch.full((-(-rows // block[0]), -(-cols // block[1])), 0.5) + torch.rand(1)
        stored[name] = weights[name].to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        weights[name] = (
            stored[name].float() * scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :cols]
        )
    return stored


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_folder_is_read_as_loaded(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Single or sharded, with a stale index or not, tied or not, wrapped, quantised, each tensor in its own dtype."""
    tied = data.draw(st.booleans(), "tied")
    dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
    values = _weights(data.draw(st.integers(0, 3), "seed"), tied)
    weights = {name: value.to(data.draw(dtypes, name)) for name, value in values.items()}
    if tied:
        second = data.draw(st.sampled_from(["none", "equal", "other", "instead"]), "second")
        if second == "instead":
            weights[HEAD] = weights.pop(EMBED)
        elif second != "none":
            weights[HEAD] = weights[EMBED].clone() if second == "equal" else _weights(9)[HEAD]
    matrices = [name for name in weights if name.endswith("_proj.weight")]
    chosen = data.draw(st.lists(st.sampled_from(matrices), max_size=3, unique=True), "float8")
    stored = _in_float8(weights, chosen, (16, 7))
    wrapper = data.draw(st.sampled_from([None, "module.", "_orig_mod. inside"]), "wrapper")
    stored = stored if wrapper is None else {WRAPPERS[wrapper](name): value for name, value in stored.items()}
    path = _folder(tmp_path_factory.mktemp("folder"), stored, tied=tied)
    if chosen:
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 7]}
        (path / "config.json").write_text(json.dumps(config))
    layouts = ["single", "sharded", "stale"] + ["ranks"] * (not tied)
    layout = data.draw(st.sampled_from(layouts), "layout")
    if layout == "sharded":
        (path / "model.safetensors").unlink()
        _shard(path, stored, data.draw(st.integers(1, 3), "parts"))
    elif layout == "stale":
        _shard(path, _weights(8))
    elif layout == "ranks":
        (path / "model.safetensors").rename(path / "shard-00001-model-00001-of-00001.safetensors")
    if not chosen and wrapper is None:
        _same(path)
    live = dict(load_model(path).named_parameters(remove_duplicate=False))  # proves itself
    checkpoint = tv.open_checkpoint(path)
    for name, value in weights.items():
        assert torch.equal(live[name], value.float()), name
        assert name not in checkpoint.names or torch.equal(checkpoint.tensor(name).float(), value.float()), name
    load_model(path, dtype="bfloat16")
