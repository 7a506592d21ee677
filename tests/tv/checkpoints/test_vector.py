"""The tuning vector: its arithmetic, and its file."""

import weakref
from pathlib import Path

import pytest
import torch
from pandas.testing import assert_frame_equal
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tv
from tests.pairs import build_model, build_pair


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return build_pair(tmp_path, "llama")


def test_arithmetic(pair: tuple[Path, Path]) -> None:
    vector = tv.extract(*pair)
    name = vector.names[3]
    assert torch.equal((2 * vector)[name], 2 * vector[name])
    assert torch.equal((-vector)[name], -vector[name])
    assert torch.equal((vector + vector)[name], (vector * 2.0)[name])
    assert vector.cosine(vector) == pytest.approx(1) and vector.cosine(-vector) == pytest.approx(-1)
    assert vector.cosine(vector * 0.0) == 0
    flat = torch.cat([vector[n].flatten() for n in vector.names]).double()
    assert vector.norm() == pytest.approx(float(flat.norm()))


def test_save_and_load(pair: tuple[Path, Path], tmp_path: Path) -> None:
    vector = tv.extract(*pair)
    vector.save(tmp_path / "t.safetensors")
    loaded = tv.TuningVector.load(tmp_path / "t.safetensors")
    assert set(loaded.names) == set(vector.names)
    assert all(torch.equal(loaded[name], vector[name]) for name in vector.names)
    assert loaded.provenance["base"]["source"] == str(pair[0])
    assert loaded.provenance["tuned"]["content"] != loaded.provenance["base"]["content"]
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert file.get_tensor(vector.names[0]).dtype == torch.float32
    assert not list(tmp_path.glob("*.tmp"))
    assert loaded.cosine(vector) == pytest.approx(1)


def test_saving_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def read(name: str) -> torch.Tensor:
        assert not any(reference() is not None for reference in alive)
        value = torch.full((3, 5), float(name))
        alive.append(weakref.ref(value))
        return value

    tv.TuningVector({str(i): (3, 5) for i in range(4)}, read, {}).save(tmp_path / "t.safetensors")
    assert float(tv.TuningVector.load(tmp_path / "t.safetensors")["2"].mean()) == 2


def test_a_save_that_fails_leaves_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load_file(pair[1] / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, pair[1] / "model.safetensors")
    with pytest.raises(tv.CheckpointError, match="NaN"):
        tv.extract(*pair).save(tmp_path / "t.safetensors")
    assert not list(tmp_path.glob("t.safetensors*"))


def test_bad_files_and_vectors_of_other_models(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for path in (pair[0] / "model.safetensors", tmp_path / "nothing.safetensors"):
        with pytest.raises(tv.CheckpointError, match="not a tuning vector"):
            tv.TuningVector.load(path)
    other = tv.extract(*build_pair(tmp_path, "qwen2"))
    with pytest.raises(tv.CheckpointError, match="different models"):
        tv.extract(*pair) + other
    with pytest.raises(tv.CheckpointError, match="different models"):
        tv.extract(*pair).cosine(other)
    with pytest.raises(tv.CheckpointError, match="cannot be written"):
        tv.extract(*pair).save(tmp_path / "no" / "such" / "place.safetensors")


def test_a_fused_tensor_is_saved_expert_by_expert(tmp_path: Path) -> None:
    def refuse(name: str) -> torch.Tensor:
        raise AssertionError(f"{name} was read whole")

    alive: list[weakref.ref[torch.Tensor]] = []

    def expert(name: str, index: int) -> torch.Tensor:
        assert not any(reference() is not None for reference in alive)
        value = torch.full((3, 5), float(index) + 1)
        alive.append(weakref.ref(value))
        return value

    vector = tv.TuningVector({"experts": (4, 3, 5)}, refuse, {}, expert)
    vector.save(tmp_path / "t.safetensors")
    loaded = tv.TuningVector.load(tmp_path / "t.safetensors")
    assert torch.equal(loaded["experts"].mean((1, 2)), torch.arange(1.0, 5))
    assert torch.equal(loaded.expert("experts", 2), torch.full((3, 5), 3.0))
    assert loaded.norm() == pytest.approx(float(loaded["experts"].norm())) == pytest.approx(vector.norm())
    assert vector.cosine(-loaded) == pytest.approx(-1)
    assert torch.equal((2 * loaded + loaded).expert("experts", 3), torch.full((3, 5), 12.0))


@pytest.mark.parametrize("form", ["file", "text", "object"])
def test_it_goes_wherever_a_tuned_checkpoint_goes(form: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    vector = tv.extract(*pair)
    vector.save(tmp_path / "t.safetensors")
    source = {"file": tmp_path / "t.safetensors", "text": str(tmp_path / "t.safetensors"), "object": vector}[form]
    opened = tv.open_pair(pair[0], source)
    assert opened.facts.notes == () and opened.facts.tokenizer == "same"
    for module in opened.modules:
        assert torch.equal(opened.delta(module), module.matrix(vector[module.parameter]))
    expected, found = (tv.measured(pair[0], side, ("weights", "alignment")) for side in (pair[1], source))
    for name in expected:
        assert_frame_equal(expected[name], found[name], check_exact=False, rtol=1e-5)


def test_t_is_exactly_as_in_the_file(pair: tuple[Path, Path]) -> None:
    tiny = 1e-9 * tv.extract(*pair)
    opened = tv.open_pair(pair[0], tiny)
    module = opened.base.architecture.module(1, "down")
    assert torch.equal(opened.delta(module), tiny[module.parameter])
    assert torch.equal(opened.tuned.tensor(module.parameter), opened.base.tensor(module.parameter))  # it vanishes there


def test_without_a_base_the_one_it_was_taken_from(pair: tuple[Path, Path], tmp_path: Path) -> None:
    vector = tv.extract(*pair)
    for source in (vector, 2 * vector, vector + vector):
        checkpoint = tv.open_checkpoint(source)
        assert checkpoint.base is not None and checkpoint.base.source == str(pair[0])
    bare = tv.TuningVector(vector.shapes, lambda name: vector[name], {})
    with pytest.raises(tv.CheckpointError, match="names no base; pass the base"):
        tv.open_checkpoint(bare)
    notes = tv.open_pair(pair[0], bare).facts.notes
    assert len(notes) == 1 and "does not say which base" in notes[0]


def test_another_base_is_noted_or_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    tv.extract(*pair).save(tmp_path / "t.safetensors")
    notes = tv.open_pair(pair[1], tmp_path / "t.safetensors").facts.notes
    assert len(notes) == 1 and f"was taken from {pair[0]}, whose fingerprint is another than {pair[1]}'s" in notes[0]
    others = {"qwen2": "the tuning vector has not parameter", "olmo2": "parameter"}
    for architecture, expected in others.items():
        other, _ = build_pair(tmp_path, architecture)
        with pytest.raises(tv.CheckpointError, match=expected) as caught:
            tv.open_pair(other, tmp_path / "t.safetensors")
        assert "\n" not in str(caught.value)
    vector = tv.extract(*pair)
    shapes = {name: (81, 48) if name.endswith("up_proj.weight") else shape for name, shape in vector.shapes.items()}
    with pytest.raises(tv.CheckpointError, match=r"up_proj.weight' has shape \[81, 48\], there \[80, 48\]"):
        tv.open_pair(pair[0], tv.TuningVector(shapes, lambda name: vector[name], {}))


def test_of_a_cut_vocabulary_the_common_rows(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model = build_model("llama", seed=2)
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "cut")
    vector = tv.extract(pair[0], tmp_path / "cut")
    assert vector.shapes["lm_head.weight"] == (300, 48)
    found = tv.open_pair(pair[0], vector)
    assert (found.facts.vocab_tuned, found.facts.common_rows) == (300, 300)
    embed = found.modules[0]
    assert found.weight(embed).shape == found.delta(embed).shape == (300, 48)
    assert len(found.tuned.tensor("lm_head.weight")) == 300


def test_it_keeps_the_noise_of_where_it_came_from(tmp_path: Path) -> None:
    base, _ = build_pair(tmp_path / "a", "llama")
    _, tuned = build_pair(tmp_path / "b", "llama", dtype=torch.bfloat16)
    tensors = load_file(tuned / "model.safetensors")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"].float()}, tuned / "model.safetensors")
    pair = tv.open_pair(base, tuned)
    vector = tv.extract(base, tuned)
    vector.save(tmp_path / "t.safetensors")
    loaded = tv.TuningVector.load(tmp_path / "t.safetensors")
    taken = tv.open_pair(base, tmp_path / "t.safetensors")
    for module in pair.modules:
        share = pair.noise_share(module, 30.0, 1.0)
        assert taken.noise_share(module, 30.0, 1.0) == pytest.approx(share)
        assert taken.dtype(module) == pair.dtype(module)
        halved, summed = (
            tv.open_pair(base, of).noise_share(module, 30.0, 1.0) for of in (loaded * 0.5, loaded + loaded)
        )
        assert halved == pytest.approx(share / 4) and summed == pytest.approx(2 * share)
    assert {pair.dtype(module) for module in pair.modules} == {"BF16", "F32"}


def test_fingerprint_sees_t_and_the_base(pair: tuple[Path, Path]) -> None:
    vector = tv.extract(*pair)
    contents = {
        tv.open_checkpoint(source, base=base).fingerprint()["content"]
        for source, base in ((vector, pair[0]), (2 * vector, pair[0]), (vector, pair[1]), (pair[0], None))
    }
    assert len(contents) == 4


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"tuning_vector": "3"}, {"tuning_vector": "{"}])
def test_a_file_without_provenance_is_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(tv.CheckpointError, match="not a tuning vector") as caught:
        tv.open_checkpoint(tmp_path / "x.safetensors", base=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", [0, 100, -8])
def test_a_cut_file_is_refused(part: int, pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    tv.extract(*pair).save(file)
    file.write_bytes(file.read_bytes()[:part])
    with pytest.raises(tv.CheckpointError, match="not a tuning vector") as caught:
        tv.open_pair(pair[0], file)
    assert "\n" not in str(caught.value)
