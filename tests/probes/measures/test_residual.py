"""Contributions: they sum to the stream, and heads sum to attention."""

import pytest
import torch

from probes.capture.hooks.plan import plan
from probes.capture.hooks.torch_backend import capture
from probes.measures.dla import readout
from probes.measures.live_weights import matrix_of
from probes.measures.residual import compare_contributions, compare_heads, head_grams
from tests.pairs import MEASURED, build_model, perturb
from tests.probes.measures.captured import FOIL, INPUTS, PROMPTS, TARGET, captured, proved


@pytest.mark.parametrize("architecture", MEASURED)
def test_embedding_and_contributions_sum_to_the_final_residual(architecture: str) -> None:
    _, _, _, terms, final, _ = captured(architecture)
    assert set(terms) == {(-1, "embed")} | {(layer, name) for layer in range(3) for name in ("attn", "mlp")}
    total = torch.stack(list(terms.values())).sum(0)
    assert float((total - final).norm() / final.norm()) < 1e-4


def test_a_contribution_is_what_reaches_the_stream_after_its_factor() -> None:
    """Granite multiplies by 0.3 what its components compute."""
    _, _, flow, terms, _, _ = captured("granite")
    assert {place: flow.factor(*place) for place in terms} == dict.fromkeys(terms, 0.3) | {(-1, "embed"): 1.0}


@pytest.mark.parametrize("architecture", MEASURED)
def test_heads_from_grams_equal_heads_written_out(architecture: str) -> None:
    """Norms, cosines and pushes without forming contributions, against contributions formed in float64."""
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, 0.05, seed=9)
    arch, flow = proved(base)
    forms, factor = flow.norms, flow.factor(1, "attn")
    writer, module = arch.blocks[1].writer("attn"), arch.module(1, "o")
    assert writer.head_module == module
    zs, weights, written, outs, reads = [], [], [], [], []
    for model in (base, tuned):
        seen, _ = capture(model, plan(arch, ("head_out", "attn_out")), INPUTS)
        w = factor * matrix_of(module, model.get_submodule(module.path)).double()
        z = seen[writer.head_in].input[:, -1].double()
        bias = getattr(model.get_submodule(module.path), "bias", None)
        out = factor * seen[writer.out].output[:, -1].double()
        if writer.post_norm is not None:
            form = forms[writer.post_norm]
            w = w * form.gain(model.get_submodule(writer.post_norm)).double()[:, None]
            z = z / form.scale(seen[writer.head_in].output[:, -1].double())
        outs.append(out if bias is None else out - factor * bias.detach().double())
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
    arch, flow = proved(model)
    read = readout(model, arch, flow.norms[arch.final_norm], TARGET, FOIL)
    prompt = torch.tensor([0, 1, 1])
    found = compare_contributions(c, c, read, read, prompt)
    assert not found.delta_norm.any() and torch.allclose(found.cosine, torch.ones(3))
    zero = compare_contributions(0 * c, 0 * c, read, read, prompt)
    assert not zero.cosine.any() and not zero.push_base.any()
