"""The torch backend: what hooks see, that both models run in step, and that nothing stays behind."""

from pathlib import Path

import pytest
import torch
from torch import nn

from probes.capture.hooks.plan import MODULE, SITES, Read, Seen, plan
from probes.capture.hooks.torch_backend import capture, lockstep
from probes.measures.gates import gate_bits
from tests.pairs import SUPPORTED, build_model, perturb
from tv.architecture.resolve import resolve

IDS = torch.randint(307, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_hooked_logits_are_the_models_own_and_hooks_go(architecture: str) -> None:
    base, tuned = build_model(architecture), build_model(architecture, seed=3)
    reads = plan(resolve(base), (*SITES, MODULE))
    before = _hooks(base)
    seen: list[str] = []
    with torch.inference_mode():
        expected = [model(**INPUTS, use_cache=False).logits for model in (base, tuned)]
    logits = lockstep(base, tuned, reads, INPUTS, lambda read, a, b: seen.append(read.path))
    assert all(torch.equal(a, b) for a, b in zip(logits, expected, strict=True))
    assert set(seen) == {read.path for read in reads}
    assert _hooks(base) == before


@pytest.mark.parametrize("architecture", SUPPORTED)
def test_gate_bits_equal_an_unhooked_computation(architecture: str) -> None:
    """The gate's sign from the block's own MLP input and matrices, no hook on the gate's output involved."""
    model = build_model(architecture)
    arch = resolve(model)
    reads = plan(arch, ("gate", MODULE))
    seen, _ = capture(model, reads, INPUTS)
    gates = {s.layer: seen[r.path].at(s) for r in reads for s in r.sites if s.name == "gate"}
    assert sorted(gates) == [0, 1, 2]
    for block in arch.blocks:
        module = arch.module(block.layer, "gate" if arch.gated else "up")
        owner = model.get_submodule(module.path)
        x = seen[module.path].input
        bias = getattr(owner, "bias", None)
        expected = x.clone() @ module.matrix(owner.weight.detach()).T
        if bias is not None:
            expected = expected + module.outputs(bias.detach(), dim=0)
        clear = expected.abs() > 1e-5  # a sign within rounding of zero is nobody's
        assert torch.equal(gate_bits(gates[block.layer])[clear], gate_bits(expected)[clear])
        assert clear.float().mean() > 0.99


def test_llama_gate_bits_equal_a_forward_written_out_by_hand() -> None:
    """No hook at all: the blocks are called one part after the other, on the whole residual stream."""
    model = build_model("llama")
    arch = resolve(model)
    seen, _ = capture(model, plan(arch, ("gate",)), INPUTS)
    trunk, n = model.model, IDS.shape[1]
    mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        stream = trunk.embed_tokens(IDS)
        rotary = trunk.rotary_emb(stream, torch.arange(n)[None])
        for block, names in zip(trunk.layers, arch.blocks, strict=True):
            attention, _ = block.self_attn(
                block.input_layernorm(stream), position_embeddings=rotary, attention_mask=mask
            )
            stream = stream + attention
            x = block.post_attention_layernorm(stream)
            gate = block.mlp.gate_proj(x)
            assert torch.equal(gate_bits(seen[names.gate.path].output), gate > 0)
            stream = stream + block.mlp(x)


def test_pairs_are_of_the_same_place_and_of_different_models() -> None:
    base = build_model()
    tuned = build_model()
    perturb(tuned, 0.05, seed=5)
    arch = resolve(base)
    alone = [capture(model, plan(arch, SITES), INPUTS)[0] for model in (base, tuned)]
    checked = 0

    def reduce(read: Read, a: Seen, b: Seen) -> None:
        nonlocal checked
        assert torch.equal(a.output, alone[0][read.path].output)
        assert torch.equal(b.output, alone[1][read.path].output)
        checked += 1

    lockstep(base, tuned, plan(arch, SITES), INPUTS, reduce)
    assert checked == len(plan(arch, SITES))


def test_hooks_go_when_a_reduction_raises() -> None:
    base, tuned = build_model(), build_model(seed=2)
    reads = plan(resolve(base), SITES)

    def fail(read: Read, a: Seen, b: Seen) -> None:
        if "layers.1" in read.path:
            raise ValueError("stop here")

    with pytest.raises(ValueError, match="stop here"):
        lockstep(base, tuned, reads, INPUTS, fail)
    assert _hooks(base) == _hooks(tuned) == 0
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_hooks_go_when_a_model_raises() -> None:
    base, tuned = build_model(), build_model(seed=2)
    too_big = {"input_ids": torch.tensor([[1, 999_999]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    with pytest.raises(IndexError):
        lockstep(base, tuned, plan(resolve(base), SITES), too_big, lambda *_: None)
    assert _hooks(base) == _hooks(tuned) == 0


def test_a_path_is_hooked_once_and_unknown_sites_are_named() -> None:
    arch = resolve(build_model("phi3"))
    paths = [read.path for read in plan(arch, (*SITES, MODULE))]
    assert len(paths) == len(set(paths))
    with pytest.raises(ValueError, match="resid_mids"):
        plan(arch, ["resid_mids"])


def test_execution_order_is_the_plans(tmp_path: Path) -> None:
    model = build_model()
    fired: list[str] = []
    reads = plan(resolve(model), ("attn_out", "gate", "mlp_out", "resid_post", "logits"))
    lockstep(model, build_model(seed=4), reads, INPUTS, lambda read, a, b: fired.append(read.path))
    assert fired == [read.path for read in reads]
