"""Contributions: they sum to the stream, and heads sum to attention."""

import pytest
import torch

from probes.capture.hooks.plan import plan
from probes.capture.hooks.torch_backend import capture
from probes.capture.pair import prove
from probes.measures.dla import readout
from probes.measures.live_weights import matrix_of
from probes.measures.residual import compare_contributions, compare_heads, head_grams
from tests.pairs import MEASURED, build_model, perturb
from tests.probes.measures.captured import FOIL, INPUTS, PROMPTS, TARGET, captured
from tv.architecture.resolve import resolve


@pytest.mark.parametrize("architecture", MEASURED)
def test_embedding_and_contributions_sum_to_the_final_residual(architecture: str) -> None:
    _, arch, _, values, _ = captured(architecture)
    total = values["embed_out", -1].clone()
    for block in arch.blocks:
        total += values["attn_out", block.layer] + values["mlp_out", block.layer]
    final = values["resid_final", arch.n_layers]
    assert float((total - final).norm() / final.norm()) < 1e-4


@pytest.mark.parametrize("architecture", MEASURED)
def test_heads_from_grams_equal_heads_written_out(architecture: str) -> None:
    """Norms, cosines and pushes without forming contributions, against contributions formed in float64."""
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, 0.05, seed=9)
    arch = resolve(base)
    forms = prove(base, arch)
    block, module = arch.blocks[1], arch.module(1, "o")
    zs, weights, written, outs, reads = [], [], [], [], []
    for model in (base, tuned):
        seen, _ = capture(model, plan(arch, ("head_out", "attn_out")), INPUTS)
        w = matrix_of(module, model.get_submodule(module.path)).double()
        z = seen[block.head_in].input[:, -1].double()
        bias = getattr(model.get_submodule(module.path), "bias", None)
        out = seen[block.attn_out].output[:, -1].double()
        if block.attn_post_norm is not None:
            form = forms[block.attn_post_norm]
            w = w * form.gain(model.get_submodule(block.attn_post_norm)).double()[:, None]
            z = z / form.scale(seen[block.head_in].output[:, -1].double())
        outs.append(out if bias is None else out - bias.detach().double())
        zs.append(z)
        weights.append(w)
        written.append(torch.einsum("nha,mha->nhm", z.unflatten(1, (4, -1)), w.unflatten(1, (4, -1))))
        reads.append(readout(model, arch, forms[arch.final_norm], TARGET, FOIL))
    for contributions, out in zip(written, outs, strict=True):  # heads sum to what attention adds
        assert float((contributions.sum(1) - out).norm() / out.norm()) < 1e-4
    found = compare_heads(*(z.float() for z in zs), head_grams(*(w.float() for w in weights), 4), *reads, PROMPTS)
    for h in range(4):
        expected = compare_contributions(written[0][:, h], written[1][:, h], *reads, PROMPTS)
        for name, value in vars(expected).items():
            assert torch.allclose(getattr(found, name)[:, h], value, rtol=2e-4, atol=1e-5), name


def test_equal_models_have_zero_change_and_cosine_one() -> None:
    c = torch.randn(3, 48)
    model = build_model()
    arch = resolve(model)
    read = readout(model, arch, prove(model, arch)[arch.final_norm], TARGET, FOIL)
    prompt = torch.tensor([0, 1, 1])
    found = compare_contributions(c, c, read, read, prompt)
    assert not found.delta_norm.any() and torch.allclose(found.cosine, torch.ones(3))
    zero = compare_contributions(0 * c, 0 * c, read, read, prompt)
    assert not zero.cosine.any() and not zero.push_base.any()
