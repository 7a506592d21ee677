"""A live model moved along tuning vectors: where it goes, and that it comes back to the very bits."""

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from transformers import PreTrainedModel

import tv
from tests.pairs import build_model, build_pair, perturb
from tv.arithmetic.methods.terms import METHODS, Terms
from tv.arithmetic.variants import Mover
from tv.checkpoints.live import load_model


def checksum(model: PreTrainedModel) -> str:
    """Of the bits of every parameter."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        total.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def vector_of(model: PreTrainedModel, *, seed: int = 0, step: float = 0.05) -> tv.TuningVector:
    """A random tuning vector that holds its tensors, a row of them for every parameter of the model."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(value.shape, generator=generator)
        * step
        * value.detach().float().norm()
        / value.numel() ** 0.5
        for name, value in model.named_parameters()
    }
    return vector(tensors)


def vector(tensors: dict[str, Tensor]) -> tv.TuningVector:
    return tv.TuningVector({name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__, {})


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2", "gemma2"])
def test_the_tuned_model_is_at_one_and_the_base_comes_back(architecture: str, tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path, architecture, dtype=torch.bfloat16)
    model, other = load_model(base), load_model(tuned)
    before, target = checksum(model), checksum(other)
    assert before != target
    with tv.variant(model, {tv.extract(base, tuned): 1.0}) as moved:
        assert moved is model
        assert checksum(model) == target  # differences of bfloat16 are exact in float32
    assert checksum(model) == before


def test_a_float32_model_is_the_tuned_one_to_the_last_digit(tmp_path: Path) -> None:
    base, tuned = build_pair(tmp_path)
    model, other = load_model(base), load_model(tuned)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode(), tv.variant(model, {tv.extract(base, tuned): 1.0}):
        assert torch.allclose(model(ids).logits, other(ids).logits, atol=1e-4)
        for left, right in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.allclose(left, right, rtol=1e-6, atol=1e-6)


def test_scales_and_sums() -> None:
    model = build_model()
    a, b = vector_of(model, seed=1), vector_of(model, seed=2)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    with tv.variant(model, {a: 0.7, b: -0.3}):
        for name, value in model.named_parameters():
            assert torch.allclose(value, start[name] + 0.7 * a[name] - 0.3 * b[name], atol=1e-6)
            assert not torch.equal(value, start[name])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(METHODS)),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.tuples(st.floats(0.1, 2), st.floats(-2, -0.1)),
    st.integers(0, 99),
)
def test_zero_is_the_identity(method: str, dtype: torch.dtype, scales: tuple[float, float], seed: int) -> None:
    """Bit for bit, by every method, from wherever the model stands."""
    model = build_model(seed=seed).to(dtype)
    a, b, before = vector_of(model, seed=seed + 1), vector_of(model, seed=seed + 2), checksum(model)
    with Mover(model, [a, b], method=method) as mover:
        assert mover.to({a: 0.0, b: 0.0}) == 0 and checksum(model) == before
        mover.to(dict(zip((a, b), scales, strict=True)))
        assert checksum(model) != before
        assert mover.to({a: 0.0}) == 0 and checksum(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_comes_back_after_an_exception(dtype: torch.dtype) -> None:
    model = build_model().to(dtype)
    good, before = vector_of(model), checksum(model)

    def read(name: str) -> Tensor:
        if name == good.names[-1]:
            raise tv.CheckpointError("damaged")
        return good[name]

    with pytest.raises(RuntimeError, match="inside"), tv.variant(model, {good: 1.3}):
        assert checksum(model) != before
        raise RuntimeError("inside")
    assert checksum(model) == before
    with (
        pytest.raises(tv.CheckpointError, match="damaged"),
        tv.variant(model, {tv.TuningVector(good.shapes, read, {}): 1}),
    ):
        pytest.fail("a vector that cannot be read is no variant")
    assert checksum(model) == before


def test_contexts_nest() -> None:
    model = build_model()
    a, b, before = vector_of(model, seed=1), vector_of(model, seed=2), checksum(model)
    with tv.variant(model, {a: 0.7}):
        outer = checksum(model)
        with pytest.raises(KeyError), tv.variant(model, {b: 0.3}):
            nested = [value.detach().clone() for value in model.parameters()]
            raise KeyError
        assert checksum(model) == outer
    assert checksum(model) == before
    with tv.variant(model, {a: 0.7, b: 0.3}):
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(nested, model.parameters(), strict=True))


def test_no_point_depends_on_the_one_before() -> None:
    model = build_model()
    a, b, before = vector_of(model, seed=1), vector_of(model, seed=2), checksum(model)
    with Mover(model, [a, b]) as mover:
        mover.to({a: 0.3})
        at = checksum(model)
        mover.to({a: 1.1, b: -2.0})
        assert checksum(model) != at
        mover.to({a: 0.3, b: 0.0})
        assert checksum(model) == at
        mover.to({})
        assert checksum(model) == before
        mover.to({b: 1.0})
        mover.restore()
        assert checksum(model) == before
        assert mover.to({a: 0.3}) == 0 and checksum(model) == at  # and it can go on
    assert checksum(model) == before


def test_a_restored_mover_starts_from_where_the_model_stands_then() -> None:
    model = build_model()
    t = vector_of(model)
    with Mover(model, [t]) as mover:
        mover.to({t: 1.0})
        mover.restore()
        perturb(model, 0.01, seed=7)
        trained = checksum(model)
        mover.to({})
        assert checksum(model) == trained
    assert checksum(model) == trained


def test_a_vector_of_the_live_model_itself() -> None:
    """Such a vector is read from the parameters that move."""
    model, other = build_model(), build_model()
    perturb(other, 0.05, seed=3)
    t = tv.extract(model, other)
    fixed = {name: t[name] for name in t.names}
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    with Mover(model, [t]) as mover:
        for scale in (0.5, 1.5, -1.0):
            mover.to({t: scale})
            for name, value in model.named_parameters():
                assert torch.equal(value, start[name] + scale * fixed[name])


def test_a_bfloat16_model_is_moved_in_float32_and_what_the_cast_loses_is_said() -> None:
    model = build_model().to(torch.bfloat16)
    t = vector_of(model, step=2e-3)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    with Mover(model, [t]) as mover:
        lost = mover.to({t: 1.0})
        step2 = error2 = 0.0
        for name, value in model.named_parameters():
            exact = start[name].float() + t[name]
            assert torch.equal(value, exact.bfloat16())
            error2 += float((value.detach().float() - exact).double().pow(2).sum())
            step2 += float((exact - start[name].float()).double().pow(2).sum())
        assert lost == pytest.approx((error2 / step2) ** 0.5, rel=1e-3)
        assert 0.4 < lost < 1.2  # rounding is 1.66e-3 of ‖W‖, the step 2e-3
        assert mover.to({}) == 0
    wide = build_model()
    with Mover(wide, [t]) as mover:
        assert mover.to({t: 1.0}) == 0


def test_tied_weights_move_once() -> None:
    model = build_model("qwen2")
    head, embed = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head is embed
    start, step = embed.detach().clone(), torch.full_like(embed, 0.5)
    embed_name, head_name = "model.embed_tokens.weight", "lm_head.weight"
    for names in ([embed_name], [head_name], [embed_name, head_name]):
        with tv.variant(model, {vector({name: step for name in names}): 1.0}):
            assert head is model.get_input_embeddings().weight and torch.equal(embed, start + 0.5)
        assert torch.equal(embed, start)
    with pytest.raises(tv.InputError, match=r"ties .* parts them"):
        Mover(model, [vector({embed_name: step, head_name: step * 2})])


def test_of_a_grown_vocabulary_the_rows_in_common_move() -> None:
    model = build_model()
    embed = model.get_input_embeddings().weight
    start = embed.detach().clone()
    fewer, more = (vector({"model.embed_tokens.weight": torch.ones(rows, 48)}) for rows in (300, 310))
    with tv.variant(model, {fewer: 1.0}):
        assert torch.equal(embed[:300], start[:300] + 1) and torch.equal(embed[300:], start[300:])
    with tv.variant(model, {more: 1.0}):
        assert torch.equal(embed, start + 1)
    assert torch.equal(embed, start)


def test_vectors_that_do_not_fit_move_nothing() -> None:
    model = build_model()
    good, before = vector_of(model), checksum(model)
    wrong = {
        "does not have": vector({"model.layers.7.mlp.up_proj.weight": torch.ones(80, 48)}),
        r"\[70, 48\] in the vector and \[80, 48\]": vector({"model.layers.0.mlp.up_proj.weight": torch.ones(70, 48)}),
        r"\[307, 40\]": vector({"model.embed_tokens.weight": torch.ones(307, 40)}),
        "does not have 'x'|moves 'x'": vector({**{name: good[name] for name in good.names}, "x": torch.ones(2)}),
    }
    for message, bad in wrong.items():
        with pytest.raises(tv.InputError, match=message), tv.variant(model, {good: 1.0, bad: 1.0}):
            pytest.fail("it does not fit")
        assert checksum(model) == before
    for scale in (float("nan"), float("inf")):
        with pytest.raises(tv.InputError, match="finite"), tv.variant(model, {good: scale}):
            pytest.fail("no such scale")
    with pytest.raises(tv.InputError, match="not among"), Mover(model, [good]) as mover:
        mover.to({vector_of(model, seed=9): 1.0})
    assert checksum(model) == before


def test_parameters_that_cannot_move() -> None:
    model = build_model()
    t = vector_of(model)
    model.model.norm.weight = torch.nn.Parameter(torch.ones(48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(tv.InputError, match=r"model\.norm\.weight.*int8"):
        Mover(model, [t])
    model.model.norm.weight = torch.nn.Parameter(torch.ones(48, device="meta"))
    with pytest.raises(tv.InputError, match="not in memory"):
        Mover(model, [t])


@pytest.mark.sampled(8)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3", "qwen3_moe"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_moves_and_comes_back(method: str, architecture: str) -> None:
    model = build_model(architecture)
    a, b, before = vector_of(model, seed=1), vector_of(model, seed=2), checksum(model)
    with Mover(model, [a, b], method=method) as mover:
        mover.to({a: 1.0, b: 0.5})
        both = checksum(model)
        mover.to({b: 0.5})
        alone = checksum(model)
        mover.to({b: 0.5, a: 1.0})
        assert checksum(model) == both and len({before, both, alone}) == 3
        mover.to({})
        assert checksum(model) == before
        mover.to({a: 1.0, b: 0.5})
    assert checksum(model) == before
    with Mover(model, [b], method=method) as mover:
        mover.to({b: 0.5})
        assert checksum(model) == alone  # a vector at λ = 0 takes no part
    assert checksum(model) == before


def test_a_sweep_reads_and_decomposes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = build_model(), []
    a, b = vector_of(model, seed=1), vector_of(model, seed=2)
    from tv.arithmetic.methods import spectral

    svd = spectral.svd
    monkeypatch.setattr(spectral, "svd", lambda *given: calls.append(1) or svd(*given))
    for method in ("tsv-m", "deflate", "wudi", "iso-c"):
        calls.clear()
        with Mover(model, [a, b], method=method) as mover:
            mover.to({a: 1.0, b: 1.0})
            once = len(calls)
            for scale in (0.5, 1.5, -1.0):
                mover.to({a: scale, b: scale})
            assert once and len(calls) == once, method


def test_the_point_is_the_methods_own_merge() -> None:
    model = build_model()
    a, b = vector_of(model, seed=1), vector_of(model, seed=2)
    name = "model.layers.1.mlp.up_proj.weight"
    value = dict(model.named_parameters())[name]
    start = value.detach().clone()
    for method, options in (("ties", {"density": 0.4}), ("tsv-m", {}), ("split-inside", {"fraction": 0.3})):
        expected = METHODS[method](Terms((a[name], b[name]), start), **options)([0.7, -0.4])
        with tv.variant(model, {a: 0.7, b: -0.4}, method=method, **options):
            assert torch.allclose(value, start + expected, atol=1e-6)
        assert torch.equal(value, start)


def test_parts_of_a_model_move_alone() -> None:
    model = build_model("phi3")  # q, k and v in one tensor
    t = vector_of(model)
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    with tv.variant(model, {t: 1.0}, only=["layer=1,q"]):
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, start[name])}
        assert moved == {"model.layers.1.self_attn.qkv_proj.weight"}
        step = dict(model.named_parameters())[moved.pop()] - start["model.layers.1.self_attn.qkv_proj.weight"]
        assert step[:64].abs().min() > 0 and step[64:].abs().max() == 0
    with tv.variant(model, {t: 1.0}, method="tsv-m", exclude=["mlp", "embed", "unembed"]):
        moved = {name for name, value in model.named_parameters() if not torch.equal(value, start[name])}
        assert moved == {name for name in start if "self_attn" in name or "input_layernorm" in name}
    for bad in ({"method": "best"}, {"only": ["layer=9"]}, {"density": 0.5}):
        with pytest.raises(tv.InputError), tv.variant(model, {t: 1.0}, **bad):
            pytest.fail("no such thing")
    assert all(torch.equal(value, start[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("method", ["ties", "iso-c", "wudi"])
def test_methods_take_the_rows_that_both_have(method: str) -> None:
    model = build_model()
    name = "lm_head.weight"
    value = model.lm_head.weight
    start = value.detach().clone()
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, 48, generator=generator) for rows in (300, 310))
    with tv.variant(model, {vector({name: a}): 1.0, vector({name: b}): 0.5}, method=method):
        padded = torch.zeros(307, 48)
        padded[:300] = a
        expected = METHODS[method](Terms((padded, b[:307]), start))([1.0, 0.5])
        assert torch.allclose(value, start + expected, atol=1e-5)
    assert torch.equal(value, start)
