"""The weight tables of whole pairs: geometry, alignment, heads, fused matrices, every architecture."""

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import tv
from tests.pairs import BY_NAME, MEASURED, build_model, build_pair, perturb
from tv.measures.decomposition import decompose
from tv.measures.ssa import align
from tv.measures.subspaces import Change


@pytest.mark.sampled(4)
@pytest.mark.parametrize("architecture", [*MEASURED, *BY_NAME])
def test_every_module_of_every_architecture_is_measured(architecture: str, tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, architecture)
    weights, alignment = tv.measured(base, tuned, ("weights", "alignment"), (0.05,)).values()
    checkpoint = tv.open_checkpoint(base)
    modules = checkpoint.architecture.modules
    others = weights[weights.kind.isin(["vector", "group"])]
    assert others.module.tolist() == [module.name for module in checkpoint.architecture.others]
    whole = weights[(weights["head"] == -1) & ~weights.kind.isin(["bias", "vector", "group"])]
    places = zip(whole.layer, whole.module, whole.expert, strict=True)
    assert list(places) == [(m.layer, m.name, m.expert) for m in modules]
    biases = {f"{m.layer} {m.name}_bias" for m in modules if f"{m.path}.bias" in checkpoint.names}
    rows = weights[weights.kind == "bias"]
    assert set(rows.layer.astype(str) + " " + rows.module) == biases
    assert np.allclose(whole.relative_norm[~whole.module.str.endswith("norm")], 0.02, rtol=0.5)
    assert (whole.changed_fraction > 0.9).all()
    assert np.isfinite(alignment.drop(columns=["epsilon", "side", "module", "k_rule", "null"]).to_numpy(float)).all()
    assert alignment.ssa.between(0, 1).all()


@pytest.mark.parametrize("architecture", ["phi3", "gpt2", "neox"])
def test_fused_matrices_are_cut_where_the_model_cuts_them(architecture: str) -> None:
    """q, k, v of a fused matrix give what the block's own projection gives, head by head."""
    model = build_model(architecture)
    arch = tv.open_checkpoint(model).architecture
    x = torch.randn(5, arch.d_model)
    with torch.no_grad():
        for name in ("q", "k", "v"):
            module = arch.module(1, name)
            owner = model.get_submodule(module.path)
            own = x @ module.matrix(owner.weight).T
            fused = owner(x)
            if getattr(owner, "bias", None) is not None:
                own = own + module.outputs(owner.bias, dim=0)
            if architecture == "neox":  # (heads, 3, d_head), as its attention views it
                expected = fused.view(5, 4, 3, 12)[:, :, "qkv".index(name)].reshape(5, -1)
            else:
                sizes = {"phi3": (64, 32, 32), "gpt2": (48, 48, 48)}[architecture]
                expected = fused.split(sizes, dim=-1)["qkv".index(name)]
            assert torch.allclose(own, expected, atol=1e-5)


def test_what_cannot_leave_this_process_or_go_to_a_device_is_refused(tmp_path: Path) -> None:
    pair = build_pair(tmp_path, "llama")
    with pytest.raises(tv.InputError, match="leave workers at 1"):
        tv.ssa(tv.open_checkpoint(pair[0]), pair[1], compute=tv.Compute(workers=2))
    with pytest.raises(tv.InputError, match="device 'nowhere'"):
        tv.ssa(*pair, compute=tv.Compute(device="nowhere"))


def test_heads_are_measured_against_their_own_slice(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    left, right = tv.open_checkpoint(base), tv.open_checkpoint(tuned)
    frame = tv.ssa(left, right, (0.05,))
    for name, head, side in (("q", 3, "right"), ("k", 1, "right"), ("v", 0, "right"), ("o", 2, "left")):
        module = left.architecture.module(1, name)
        cut = slice(head * 16, head * 16 + 16)
        w, t = left.matrix(module), right.matrix(module) - left.matrix(module)
        w, t = (w[:, cut], t[:, cut]) if name == "o" else (w[cut], t[cut])
        expected = next(row for row in align(decompose(w), t, (0.05,)) if row.side == side and row.epsilon == 0.05)
        rows = frame[(frame.layer == 1) & (frame.module == name) & (frame["head"] == head)]
        assert set(rows.side) == {side}
        assert float(rows[rows.epsilon == 0.05].ssa.iloc[0]) == pytest.approx(expected.ssa)


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, math.nan])
def test_an_epsilon_that_is_no_share_is_refused(epsilon: float) -> None:
    with pytest.raises(tv.InputError, match=f"epsilon {epsilon}"):
        tv.ssa("never", "opened", (0.05, epsilon))


def test_ranks_and_diagonal_energy(tmp_path: Path) -> None:
    """T = 0.1 W amplifies: all of its energy is on the diagonal, cos(W, T) = 1, and its ranks are W's."""
    base, other = build_model(), build_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    frame = tv.geometry(base, other, heads=False)
    matrices = frame[frame.cols > 1]
    assert np.allclose(matrices.diagonal_energy, 1, atol=1e-4) and (matrices.diagonal_energy_null < 0.05).all()
    assert np.allclose(frame.cos_weight_delta, 1, atol=1e-5)
    assert np.allclose(matrices.stable_rank, matrices.weight_stable_rank, rtol=1e-3)
    assert np.allclose(matrices.effective_rank, matrices.weight_effective_rank, rtol=1e-3)
    q = base.model.layers[0].self_attn.q_proj.weight.detach().double()
    sigma = torch.linalg.svdvals(q)
    row = frame[(frame.layer == 0) & (frame.module == "q")].iloc[0]
    assert row.weight_stable_rank == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2), rel=1e-5)
    share = sigma / sigma.sum()
    assert row.weight_effective_rank == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-5)


#: What the tables say of the direction of T.
OF_T = [
    *("noise_share", "cos_weight_delta", "large_overlap", "small_overlap", "stable_rank", "effective_rank"),
    *("participation_ratio", "diagonal_energy", *(field.name for field in fields(Change))),
]


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_what_did_not_move_has_norms_of_zero_and_no_direction(tmp_path: Path, architecture: str) -> None:
    """Heads, biases, experts and every side among them; the nulls of the shape stand."""
    base, _ = build_pair(tmp_path, architecture)
    names = ("weights", "alignment", "curve", "spectra")
    tables = tv.measured(base, base, {name: {} for name in names} | {"alignment": {"swap": True}})
    weights, alignment, curve, spectra = tables.values()
    assert (weights[["delta_norm", "relative_norm", "changed_fraction"]] == 0).all().all()
    assert weights[OF_T].isna().all().all()
    assert weights[weights.cols > 1].drop(columns=OF_T).notna().all().all()
    assert alignment[["ssa", "kappa", "ssa_z"]].isna().all().all()
    assert alignment.ssa_null.between(0, 1, inclusive="right").all() and alignment.at_ceiling.notna().all()
    assert alignment[alignment["head"] == -1].ssa_swap.isna().all()
    assert curve[["ssa", "area"]].isna().all().all() and curve.ssa_null.notna().all()
    assert spectra[["share_left", "share_right"]].isna().all().all() and (spectra.sigma_delta == 0).all()


def test_only_what_moved_counts_in_the_means_of_the_tables(tmp_path: Path) -> None:
    base, other = build_model(), build_model()
    perturb(other.model.layers[1].self_attn.v_proj, 0.1, seed=3)
    weights, alignment = tv.measured(base, other, ("weights", "alignment"), heads=False).values()
    for table, column in ((weights, "effective_rank"), (alignment, "ssa")):
        known = table[table[column].notna()]
        assert set(zip(known.layer, known.module, strict=True)) == {(1, "v")}


def test_a_single_entry_is_found(tmp_path: Path) -> None:
    base, other = build_model(), build_model()
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight[7, 11] += 0.5
    frame = tv.geometry(base, other, heads=False)
    moved = frame[frame.delta_norm > 0]
    assert list(zip(moved.layer, moved.module, strict=True)) == [(2, "up")]
    assert moved.delta_norm.iloc[0] == pytest.approx(0.5, rel=1e-5)
    assert moved.changed_fraction.iloc[0] == pytest.approx(1 / (80 * 48))
    assert moved.effective_rank.iloc[0] == pytest.approx(1, abs=1e-3)


def test_bfloat16_differences_are_formed_in_float32(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama", dtype=torch.bfloat16)
    left, right = tv.open_checkpoint(base), tv.open_checkpoint(tuned)
    name = "model.layers.0.mlp.up_proj.weight"
    exact = right.tensor(name).double() - left.tensor(name).double()
    assert torch.equal(tv.extract(left, right)[name].double(), exact)
    assert left.dtype == "BF16"


def test_tied_embeddings_are_one_tensor_seen_at_both_sites(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "qwen2")
    frame = tv.geometry(base, tuned, heads=False).set_index("module")
    assert frame.loc["unembed", "tied"] and not frame.loc["embed", "tied"]
    assert frame.loc["unembed", "delta_norm"] == frame.loc["embed", "delta_norm"]


def test_live_models_and_directories_agree(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, "llama")
    model, moved = build_model("llama"), build_model("llama")
    perturb(moved, 0.02, seed=1)
    on_disk, live = tv.ssa(base, tuned), tv.ssa(model, moved)
    assert np.allclose(on_disk.ssa, live.ssa, atol=1e-6)
