"""Tuning vectors against each other: planted relations are found, and unrelated ones score their nulls."""

import math
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tv
from tests.command import call
from tests.pairs import SUPPORTED, build_model, build_pair, perturb
from tv.architecture.anatomy import Module
from tv.checkpoints.pairing import WeightPair
from tv.cli import main
from tv.measures.cosine import sums_of
from tv.measures.overlap import component_products, cross_gram, directions, overlap

SHAPES = [(64, 24), (24, 64), (40, 40)]


def random_vector(base: tv.Checkpoint, seed: int, change: Callable[[Tensor], Tensor] = lambda t: t) -> tv.TuningVector:
    """Independent normal entries in every parameter."""
    shapes = {name: base.info(name).shape for name in base.names}

    def read(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1000 + base.names.index(name))
        return change(torch.randn(shapes[name], generator=generator))

    return tv.TuningVector(shapes, read, {})


@pytest.fixture(scope="module")
def base() -> tv.Checkpoint:
    return tv.open_checkpoint(build_model())


@pytest.mark.sampled(4)
@pytest.mark.parametrize("architecture", SUPPORTED)
def test_the_whole_is_every_parameter_once(architecture: str, tmp_path: Path) -> None:
    """Modules, fused slices, tied weights and biases sum to TuningVector.cosine; the rows of a layer to the layer."""
    base, first = build_pair(tmp_path, architecture)
    second = build_model(architecture)
    perturb(second, 0.03, seed=7)
    a = tv.extract(base, first)
    with torch.no_grad():  # some of the first, or the cosine to be found is 0
        for name, value in second.named_parameters():
            value.add_(a[name])
    frame = tv.cosine(base, {"first": first, "second": second})
    b = tv.extract(base, second)
    whole = frame[frame.scope == "whole"].iloc[0]
    assert whole.cosine == pytest.approx(a.cosine(b), abs=1e-9) and whole.cosine > 0.1
    assert whole.norm_a == pytest.approx(a.norm()) and whole.norm_b == pytest.approx(b.norm())
    assert whole.entries == sum(math.prod(shape) for shape in a.shapes.values())
    layers = frame[frame.scope == "layer"]
    assert layers.entries.sum() == whole.entries and not layers.layer.duplicated().any()
    modules = frame[frame.scope == "module"]
    biases = sum(math.prod(a.shapes[name]) for name in a.names if name.endswith("bias"))
    assert modules.entries.sum() == whole.entries - biases
    assert not modules.duplicated(["layer", "module", "expert"]).any()


@pytest.mark.parametrize(("sign", "conflict"), [(1.0, 0.0), (-1.0, 1.0)])
def test_the_same_and_the_opposite_vector(base: tv.Checkpoint, sign: float, conflict: float) -> None:
    vector = random_vector(base, 1)
    frame = tv.cosine(base, {"one": vector, "other": sign * 3.0 * vector})
    assert np.allclose(frame.cosine, sign) and (frame.cosine_z * sign > 3).all()
    assert np.allclose(frame.norm_b, 3 * frame.norm_a)
    assert (frame.sign_conflict == conflict).all() and np.allclose(frame.conflict_energy, conflict)
    matrices = frame[frame.k_a > 0]
    assert set(matrices.module) == {"embed", "unembed", *"qkvo", "gate", "up", "down"}
    for side in ("left", "right"):
        assert np.allclose(matrices[f"overlap_{side}"], 1) and np.allclose(matrices[f"overlap_{side}_kappa"], 1)
        assert np.allclose(matrices[f"largest_angle_cos_{side}"], 1)
        assert np.allclose(matrices[f"ssa_{side}_a_in_b"], matrices[f"ssa_{side}_b_in_a"])
        assert (matrices[f"ssa_{side}_a_in_b"] > matrices[f"ssa_{side}_a_in_b_null"]).all()
    rest = frame[frame.k_a.isna() | (frame.k_a == 0)]
    assert rest[[column for column in frame if column.startswith(("overlap", "ssa", "largest"))]].isna().all().all()


def test_unrelated_vectors_score_their_nulls(base: tv.Checkpoint) -> None:
    """Six independent vectors, fifteen pairs: each z has mean 0 and deviation 1 within four standard errors."""
    frame = tv.cosine(base, {str(i): random_vector(base, i) for i in range(6)})
    modules = frame[frame.scope == "module"]
    assert len(modules) == 15 * len(base.architecture.modules)
    whole = frame[frame.scope == "whole"]
    n = int(whole.entries.iloc[0])
    assert np.allclose(whole.cosine_null_sd, 1 / math.sqrt(n), rtol=0.05)
    conflict_z = (modules.sign_conflict - modules.sign_conflict_null) / (0.5 / np.sqrt(modules.sign_entries))
    columns = {"cosine": modules.cosine_z, "sign conflict": conflict_z}
    matrices = modules[modules.k_a > 0]
    columns |= {name: matrices[name] for name in matrices if name.endswith("_z") and not name.startswith("cosine_")}
    assert len(columns) == 8
    for name, z in columns.items():
        assert abs(z.mean()) < 4 / math.sqrt(len(z)), name
        assert abs(z.std() - 1) < 4 * math.sqrt(1 / len(z)), name  # twice the normal's: the tails here are longer
    assert (whole.cosine_z.abs() < 4).all()


@pytest.mark.parametrize("k", [2, 8, 40])
def test_unrelated_coefficients_in_shared_directions_are_chance(k: int) -> None:
    """As entries with random signs they would be 16, 6 and 1.4 standard deviations apart."""
    generator = torch.Generator().manual_seed(k)
    left, right = (torch.linalg.qr(torch.randn(d, k, generator=generator))[0] for d in (48, 80))
    drawn = [left @ torch.randn(k, k, generator=generator) @ right.T for _ in range(120)]
    found = [_shared_z(a, b) for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    assert np.std(found) < 1.2 and np.mean(np.array(found) < -1.645) <= 0.1
    assert _shared_z(drawn[0], -drawn[0]) == pytest.approx(-math.sqrt(_participation(drawn[0])), rel=1e-4)


def _shared_z(a: Tensor, b: Tensor) -> float:
    variance = component_products(directions(a), directions(b), cross_gram(a, b))
    return float((a.double() * b.double()).sum()) / math.sqrt(variance)


def _participation(a: Tensor) -> float:
    energy = torch.linalg.svdvals(a.double()).pow(2)
    return float(energy.sum() ** 2 / energy.pow(2).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_angles_and_energies_are_those_of_the_singular_vectors(shape: tuple[int, int]) -> None:
    a, b = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    b = 0.5 * a + b
    found = overlap(directions(a), directions(b), cross_gram(a, b), 0.2)
    assert found is not None
    k = round(0.2 * min(shape))
    assert (found.k_a, found.k_b) == (k, k)
    (u_a, _, v_a), (u_b, _, v_b) = (torch.linalg.svd(x.double(), full_matrices=False) for x in (a, b))
    bases = {"left": (u_a[:, :k], u_b[:, :k]), "right": (v_a.T[:, :k], v_b.T[:, :k])}
    for side, dim in (("left", shape[0]), ("right", shape[1])):
        p, q = bases[side]
        cosines = torch.linalg.svdvals(p.T @ q)
        angles = getattr(found, side)
        assert angles.overlap == pytest.approx(float(cosines.pow(2).mean()), abs=1e-9)
        assert angles.largest_angle_cos == pytest.approx(float(cosines.min()), abs=1e-9)
        assert angles.overlap_null == pytest.approx(k / dim)
        for order, t, basis in (("a_in_b", a, q), ("b_in_a", b, p)):
            t = t.double() if side == "left" else t.double().T
            inside = getattr(found, f"{side}_{order}")
            assert inside.ssa == pytest.approx(float((basis.T @ t).norm() / t.norm()), abs=1e-9)
            assert inside.ssa_null == pytest.approx(math.sqrt(k / dim))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shared_subspace_is_found_though_the_cosine_is_none(shape: tuple[int, int]) -> None:
    """T = U M Vᵀ with the same U, another M and V: the left sides overlap fully, the right ones at the null."""
    torch.manual_seed(3)
    m, n = shape
    u = torch.linalg.qr(torch.randn(m, 4)).Q
    a, b = (u @ torch.randn(4, 4) @ torch.linalg.qr(torch.randn(n, 4)).Q.T for _ in range(2))
    found = overlap(directions(a), directions(b), cross_gram(a, b), 0.5)
    assert found is not None and (found.k_a, found.k_b) == (4, 4)  # the rank, not half of the dimension
    assert found.left.overlap == pytest.approx(1, abs=1e-5) and found.left.overlap_z > 8
    assert found.left_a_in_b.ssa == pytest.approx(1, abs=1e-5) and found.left_b_in_a.ssa == pytest.approx(1, abs=1e-5)
    assert abs(found.right.overlap_z) < 4 and abs(found.right_a_in_b.ssa_z) < 4
    orthogonal = torch.linalg.qr(torch.cat([u, torch.randn(m, 4)], 1)).Q[:, 4:]
    c = orthogonal @ torch.randn(4, n)
    apart = overlap(directions(a), directions(c), cross_gram(a, c), 0.5)
    assert apart is not None
    assert apart.left.overlap < 1e-9 and apart.left_a_in_b.ssa < 1e-4 and apart.left.overlap_kappa < 0


def test_subspaces_of_different_size_have_the_larger_ones_null() -> None:
    draws = []
    for seed in range(60):
        torch.manual_seed(seed)
        a, b = torch.randn(40, 2) @ torch.randn(2, 30), torch.randn(40, 30)
        found = overlap(directions(a), directions(b), cross_gram(a, b), 0.2)
        assert found is not None and (found.k_a, found.k_b) == (2, 6)
        assert found.left.overlap_null == 6 / 40 and found.right.overlap_null == 6 / 30
        draws.append((found.left.overlap_z, found.right.overlap_z, found.left_a_in_b.ssa_z, found.right_b_in_a.ssa_z))
    assert (np.abs(np.mean(draws, 0)) < 4 / math.sqrt(60)).all()
    assert (np.abs(np.std(draws, 0) - 1) < 4 / math.sqrt(60)).all()


def test_sums_against_numpy_with_zeros_and_uneven_signs() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.8, 1, (50, 30)), generator.normal(0.5, 1, (50, 30))
    a[generator.random(a.shape) < 0.3] = 0
    b[generator.random(b.shape) < 0.2] = 0
    sums = sums_of(torch.tensor(a), torch.tensor(b))
    both = (a != 0) & (b != 0)
    assert sums.counted == both.sum() and sums.entries == 1500
    assert sums.against == (np.sign(a) * np.sign(b) < 0).sum()
    p, q = (a[both] > 0).mean(), (b[both] > 0).mean()
    assert sums.against_null / sums.counted == pytest.approx(p * (1 - q) + q * (1 - p))
    assert sums.product_against == pytest.approx(np.abs(a * b)[a * b < 0].sum())
    assert sums.dot == pytest.approx((a * b).sum()) and sums.square_both == pytest.approx(((a * b) ** 2).sum())
    assert abs(sums.against - sums.against_null) < 4 * math.sqrt(sums.counted / 4)  # independent, though uneven
    assert sums.dot == pytest.approx(sums.product - 2 * sums.product_against)


def test_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(2, 70, 9)
    whole = sums_of(a, b)
    monkeypatch.setattr("tv.measures.cosine.PIECE", 100)
    parts = sums_of(a, b)
    assert parts.dot == pytest.approx(whole.dot) and parts.against_null == pytest.approx(whole.against_null)
    assert sums_of(a.T, b.T).product_against == pytest.approx(whole.product_against)


def test_the_null_keeps_the_magnitudes(base: tv.Checkpoint) -> None:
    """Two vectors that are large at the same few entries: random signs give a wide cosine, and the null knows it."""
    vectors = {"a": random_vector(base, 1, lambda t: t**5), "b": random_vector(base, 1, lambda t: t**6)}
    row = tv.cosine(base, vectors, level="whole").iloc[0]
    a, b = (torch.cat([vector[name].flatten().double() for name in vector.names]) for vector in vectors.values())
    assert row.cosine_null_sd == pytest.approx(float((a * b).norm() / (a.norm() * b.norm())), rel=1e-6)
    assert row.cosine_null_sd > 10 / math.sqrt(row.entries)
    assert row.cosine_z == pytest.approx(row.cosine / row.cosine_null_sd)
    torch.manual_seed(0)
    size = torch.ones(10_000)
    size[:5] = 300
    draws = [sums_of(size * torch.randn(10_000).sign(), size * torch.randn(10_000).sign()) for _ in range(300)]
    z = np.array([sums.dot / math.sqrt(sums.square_both) for sums in draws])
    assert abs(z.std() - 1) < 4 / math.sqrt(600) * 1.5
    n_effective = draws[0].square_a * draws[0].square_b / draws[0].square_both
    assert 5 < n_effective < 6


def test_a_vector_that_moves_nothing(base: tv.Checkpoint) -> None:
    """Where nothing moved there is no direction to compare: measures are null, not 0."""
    frame = tv.cosine(base, {"some": random_vector(base, 1), "none": random_vector(base, 2, torch.zeros_like)})
    assert (frame[["norm_b", "sign_entries"]] == 0).all().all()
    unknown = [
        "cosine",
        "cosine_null_sd",
        "cosine_z",
        "cosine_shared_z",
        "sign_conflict",
        "sign_conflict_null",
        "conflict_energy",
        "overlap_left",
        "ssa_right_a_in_b",
    ]
    assert frame[unknown].isna().all().all() and not (frame.k_b > 0).any()


def test_vocabularies_that_grew_apart_are_compared_in_their_common_rows(base: tv.Checkpoint) -> None:
    grown = []
    for rows in (320, 311):
        model = build_model()
        perturb(model, 0.02, seed=rows)
        model.resize_token_embeddings(rows, mean_resizing=False)
        grown.append(model)
    frame = tv.cosine(build_model(), {str(i): model for i, model in enumerate(grown)})
    embed = frame[frame.module == "embed"].iloc[0]
    assert embed.entries == 307 * 48


def test_levels_and_their_order(base: tv.Checkpoint) -> None:
    vectors = {name: random_vector(base, i) for i, name in enumerate("xyz")}
    frames = {level: tv.cosine(base, vectors, level=level) for level in ("whole", "layer", "module")}
    assert {level: set(frame.scope) for level, frame in frames.items()} == {
        "whole": {"whole"},
        "layer": {"whole", "layer"},
        "module": {"whole", "layer", "module"},
    }
    assert [*zip(frames["whole"].a, frames["whole"].b, strict=True)] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert frames["whole"].layer.isna().all() and (frames["whole"].module == "all").all()
    layers = frames["layer"][frames["layer"].scope == "layer"]
    assert list(layers.layer.unique()) == [-1, 0, 1, 2, 3]
    assert frames["module"].cosine_shared_z.notna().all()
    assert all(frames[level].cosine_shared_z.isna().all() for level in ("whole", "layer"))  # nothing is decomposed
    common = frames["whole"].columns.drop("cosine_shared_z")
    pd.testing.assert_frame_equal(frames["module"][common].head(3), frames["whole"][common], check_exact=True)
    assert set(frames["whole"].attrs["fingerprints"]) == {"base", "x", "y", "z"}


def test_two_modules_are_in_memory_at_a_time(base: tv.Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most, read = 0, WeightPair.delta

    def counted(self: WeightPair, module: Module) -> Tensor:
        nonlocal most
        value = read(self, module).clone()
        alive.append(weakref.ref(value))
        most = max(most, sum(reference() is not None for reference in alive))
        return value

    monkeypatch.setattr(WeightPair, "delta", counted)
    tv.cosine(base, {str(i): random_vector(base, i) for i in range(5)})
    assert most == 2


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_the_command_writes_its_table(ending: str, tmp_path: Path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    tv.extract(base, tuned).save(tmp_path / "t.safetensors")
    out = tmp_path / f"out.{ending}"
    sources = [tuned, f"again={tmp_path / 't.safetensors'}", f"base={base}"]
    code, stdout, stderr = call(monkeypatch, capsys, main, "cosine", base, *sources, "-o", out)
    assert code == 0, stderr
    reader = {"parquet": pd.read_parquet, "csv": pd.read_csv, "json": pd.read_json}[ending]
    frame = reader(out)
    expected = tv.cosine(base, {"llama-tuned": tuned, "again": tmp_path / "t.safetensors", "base": base})
    assert list(frame.a) == list(expected.a) and np.allclose(frame.cosine, expected.cosine, equal_nan=True)
    assert {"fingerprint_base", "fingerprint_again"} <= set(frame.columns)
    assert "llama-tuned and again: cosine 1" in stdout and "no parameter is changed by both" in stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{base}", "{tuned}"], "two or more"),
        (["{base}"], "TUNED"),
        (["{base}", "{tuned}", "{tuned}"], "both called 'llama-tuned'"),
        (["{base}", "x={tuned}", "x={base}"], "both called 'x'"),
        (["{base}", "x=", "{tuned}"], "NAME=TUNED"),
        (["{base}", "={tuned}", "{tuned}"], "NAME=TUNED"),
        (["{base}", "{tuned}", "x=./nowhere"], "no such directory"),
        (["{base}", "{tuned}", "x={other}"], "one architecture"),
        (["{base}", "{tuned}", "x={base}", "--fraction", "1.5"], "fraction 1.5"),
        (["{base}", "{tuned}", "x={base}", "-o", "out.xlsx"], ".xlsx"),
        (["{base}", "{tuned}", "x={broken}"], "NaN"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], expected: str, tmp_path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    places = {"base": base, "tuned": tuned}
    if "{other}" in arguments[-1]:
        places["other"] = build_pair(tmp_path, "qwen2")[0]
    if "{broken}" in arguments[-1]:
        places["broken"] = build_pair(tmp_path / "broken")[1]
        tensors = load_file(places["broken"] / "model.safetensors")
        tensors["model.norm.weight"][0] = float("nan")
        save_file(tensors, places["broken"] / "model.safetensors", {"format": "pt"})
        arguments = [*arguments, "-o", "out.csv"]
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    filled = [argument.format(**places) for argument in arguments]
    code, _, stderr = call(monkeypatch, capsys, main, "cosine", *filled)
    assert code == 2 and expected in stderr and len(stderr.strip().splitlines()) == 1, stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_whose_name_has_an_equals_sign(tmp_path: Path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    tuned.rename(tmp_path / "lr=1e-4")
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = call(monkeypatch, capsys, main, "cosine", base, "lr=1e-4", "twin=lr=1e-4")
    assert code == 0 and "lr=1e-4 and twin: cosine 1" in stdout, stderr
