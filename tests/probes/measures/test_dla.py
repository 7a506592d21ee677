"""Direct logit attribution sums to the logit difference."""

import pytest
import torch

from probes.measures.dla import readout
from tests.pairs import MEASURED, build_model
from tests.probes.measures.captured import FOIL, PROMPTS, TARGET, captured, proved


@pytest.mark.parametrize("architecture", MEASURED)
def test_dla_sums_to_the_logit_difference(architecture: str) -> None:
    """Over the embedding and every component, plus the constant of a bias; the logits are those before a soft cap."""
    model, arch, flow, terms, final, after = captured(architecture)
    form = flow.norms[arch.final_norm]
    read = readout(model, arch, form, TARGET, FOIL, flow.logit_scale)
    scale = form.scale(final.float())[:, -1, 0]
    dla = torch.stack([read.push(term[:, -1].float(), PROMPTS) / scale for term in terms.values()])
    cap = getattr(model.config, "final_logit_softcapping", None)
    logits = (after if cap is None else cap * (after / cap).atanh())[:, -1].float()
    difference = logits.gather(1, TARGET[:, None])[:, 0] - logits.gather(1, FOIL[:, None])[:, 0]
    assert torch.allclose(dla.sum(0) + read.constant, difference, atol=1e-4 * float(logits.abs().max()))
    assert dla.abs().min() > 0


def test_the_logits_own_factor_is_in_it() -> None:
    """Granite divides its logits by 4."""
    model, arch, flow, *_ = captured("granite")
    assert flow.logit_scale[0] * flow.logit_scale[1] == 0.25
    form = flow.norms[arch.final_norm]
    scaled, plain = (readout(model, arch, form, TARGET, FOIL, scale) for scale in (flow.logit_scale, (1.0, 1.0)))
    torch.testing.assert_close(scaled.direction, plain.direction / 4)


def test_prompts_without_a_target_have_no_dla() -> None:
    model = build_model()
    arch, flow = proved(model)
    read = readout(model, arch, flow.norms[arch.final_norm], torch.tensor([-1, 4]), torch.tensor([-1, 9]))
    push = read.push(torch.randn(3, arch.d_model), torch.tensor([0, 1, 1]))
    assert push.isnan().tolist() == [True, False, False]
