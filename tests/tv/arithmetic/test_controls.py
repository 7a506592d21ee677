"""Control vectors: what they keep of T, what they lose, and that they are drawn alike however they are read."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import tv
from probes.suite import Attribution
from tests.pairs import build_model, build_pair
from tv.arithmetic.controls import CONTROLS, control, control_vector

SHAPES = {"wide": (24, 40), "tall": (40, 24), "gain": (24,), "experts": (3, 20, 12), "still": (8, 8), "row": (1, 30)}


@pytest.fixture
def vector() -> tv.TuningVector:
    generator = torch.Generator().manual_seed(5)
    tensors = {name: torch.randn(shape, generator=generator) * 0.01 for name, shape in SHAPES.items()}
    tensors["still"].zero_()
    tensors["experts"] *= torch.tensor([1.0, 5.0, 0.0])[:, None, None]
    tensors["wide"][3] = 0  # a row that T leaves alone
    return tv.TuningVector(SHAPES, tensors.__getitem__, {"base": {"source": "somewhere"}})


def parts(vector: tv.TuningVector) -> dict[str, Tensor]:
    """Every parameter, and of the fused one every expert."""
    whole = {name: vector[name] for name in vector.names if name != "experts"}
    return whole | {f"expert {i}": vector.expert("experts", i) for i in range(3)}


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_control_has_ts_norms_and_nothing_of_its_direction(kind: str, vector: tv.TuningVector) -> None:
    made = control(vector, kind, 0)
    assert made.shapes == vector.shapes
    for (name, own), drawn in zip(parts(vector).items(), parts(made).values(), strict=True):
        assert drawn.shape == own.shape and drawn.dtype == torch.float32
        assert float(drawn.norm()) == pytest.approx(float(own.norm()), rel=1e-5), name
        if own.any():
            cosine = float((drawn * own).sum() / (drawn.norm() * own.norm()))
            assert abs(cosine) < 4 / own.numel() ** 0.5, name
    assert made.norm() == pytest.approx(vector.norm(), rel=1e-5)


@pytest.mark.parametrize("kind", CONTROLS)
def test_what_is_drawn_depends_on_seed_and_name_alone(kind: str, vector: tv.TuningVector) -> None:
    first, again, other = control(vector, kind, 0), control(vector, kind, 0), control(vector, kind, 1)
    backwards = {name: again[name] for name in reversed(again.names)}
    for name in vector.names:
        assert torch.equal(first[name], backwards[name]) and torch.equal(first[name], first[name])
        assert torch.equal(first[name], other[name]) == (name == "still")
    assert torch.equal(first["experts"][1], first.expert("experts", 1))
    cut = tv.TuningVector({"tall": SHAPES["tall"]}, vector._read, {})
    assert torch.equal(control(cut, kind, 0)["tall"], first["tall"])


def test_each_control_keeps_what_its_name_says(vector: tv.TuningVector) -> None:
    shuffled, spectrum, random = (control(vector, kind, 3) for kind in ("shuffled", "spectrum", "random"))
    for name, own in parts(vector).items():
        drawn = parts(shuffled)[name]
        assert torch.equal(drawn.flatten().sort().values, own.flatten().sort().values)
    for name in ("wide", "tall"):
        values = torch.linalg.svdvals(vector[name])
        assert torch.allclose(torch.linalg.svdvals(spectrum[name]), values, atol=1e-6)
        assert not torch.allclose(torch.linalg.svdvals(random[name]), values, atol=1e-4)
    flat = tv.TuningVector({"rank one": (30, 20)}, lambda _: torch.outer(torch.arange(30.0), torch.ones(20)), {})
    assert torch.linalg.matrix_rank(control(flat, "spectrum", 0)["rank one"], rtol=1e-4) == 1
    assert torch.linalg.matrix_rank(control(flat, "shuffled", 0)["rank one"], rtol=1e-4) > 1


def test_a_spectrum_is_rotated_evenly() -> None:
    """The first singular direction has no preferred entry and no preferred sign."""
    flat = tv.TuningVector({f"{i}": (4, 3) for i in range(2000)}, lambda _: torch.diag(torch.ones(4))[:, :3] * 1.0, {})
    made = control(flat, "spectrum", 0)
    drawn = torch.stack([made[name] for name in made.names])
    assert float(drawn.mean(0).abs().max()) < 0.06  # sd 0.011 a mean
    assert torch.allclose(drawn.square().mean(0), torch.full((4, 3), 0.25), atol=0.03)


def test_provenance_says_what_it_is_and_keeps_the_rounding(tmp_path: Path, vector: tv.TuningVector) -> None:
    """A control is measured beside T: the noise floor and the stored dtype of both are those of T."""
    base, tuned = build_pair(tmp_path, dtype=torch.bfloat16)
    own = tv.extract(base, tuned)
    made = control(own, "random", 4)
    assert made.provenance["control"] == "random" and made.provenance["seed"] == 4
    assert made.base == own.base
    name = made.names[0]
    assert made.noise(name) == own.noise(name) and own.noise(name).of_weight > 0 and made.dtype(name) == "BF16"
    made.save(tmp_path / "control.safetensors")
    loaded = tv.TuningVector.load(tmp_path / "control.safetensors")
    assert loaded.provenance["control_of"]["tuned"] == own.provenance["tuned"] and torch.equal(loaded[name], made[name])
    with tv.variant(build_model(), {made: 1.0}):
        pass


def test_a_control_of_a_name_that_is_none(vector: tv.TuningVector) -> None:
    with pytest.raises(tv.InputError, match="'noise'; there are random, shuffled, spectrum"):
        control(vector, "noise", 0)


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_control_keeps_the_rounding_and_the_dtype_of_its_vector(kind: str, tmp_path: Path) -> None:
    vector = tv.extract(*build_pair(tmp_path, "llama", dtype=torch.bfloat16))
    made = control(vector, kind, seed=0)
    for name in vector.names:
        assert made.dtype(name) == vector.dtype(name) == "BF16"
        assert made.noise(name) == vector.noise(name) and made.noise(name).of_weight > 0


def test_another_control_is_one_decorated_function(vector: tv.TuningVector, monkeypatch: pytest.MonkeyPatch) -> None:
    list(CONTROLS)
    monkeypatch.setattr(CONTROLS, "_entries", dict(CONTROLS._entries))

    @control_vector("flipped")
    def flipped(delta: Tensor, generator: torch.Generator) -> Tensor:
        return -delta

    assert torch.equal(tv.control(vector, "flipped", 0)["wide"], -vector["wide"])
    assert Attribution(controls=("flipped",)).controls == ("flipped",)
    with pytest.raises(ValidationError, match="no control 'noise'; there are flipped, random, shuffled, spectrum"):
        Attribution(controls=("noise",))


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("value", [torch.zeros(0, 24), torch.tensor(2.0)])
def test_a_parameter_without_entries_or_without_a_dimension_has_a_control(kind: str, value: Tensor) -> None:
    drawn = control(tv.TuningVector({"odd": tuple(value.shape)}, lambda _: value, {}), kind, 0)["odd"]
    assert drawn.shape == value.shape
    assert float(drawn.norm()) == pytest.approx(float(value.norm()))
