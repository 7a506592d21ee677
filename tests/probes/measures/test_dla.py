"""Direct logit attribution sums to the logit difference."""

import pytest
import torch

from probes.capture.pair import prove
from probes.measures.dla import readout
from tests.pairs import MEASURED, build_model
from tests.probes.measures.captured import FOIL, PROMPTS, TARGET, captured
from tv.architecture.resolve import resolve


@pytest.mark.parametrize("architecture", MEASURED)
def test_dla_sums_to_the_logit_difference(architecture: str) -> None:
    """Over the embedding and every component, plus the constant of a bias; the logits are those before a soft cap."""
    model, arch, _, values, _ = captured(architecture)
    form = prove(model, arch)[arch.final_norm]
    read = readout(model, arch, form, TARGET, FOIL)
    parts = [values["embed_out", -1]]
    parts += [values[name, block.layer] for block in arch.blocks for name in ("attn_out", "mlp_out")]
    scale = form.scale(values["resid_final", arch.n_layers].float())[:, -1, 0]
    dla = torch.stack([read.push(part[:, -1].float(), PROMPTS) / scale for part in parts])
    logits = values["logits", arch.n_layers][:, -1].float()
    difference = logits.gather(1, TARGET[:, None])[:, 0] - logits.gather(1, FOIL[:, None])[:, 0]
    assert torch.allclose(dla.sum(0) + read.constant, difference, atol=1e-4 * float(logits.abs().max()))
    assert dla.abs().min() > 0


def test_prompts_without_a_target_have_no_dla() -> None:
    model = build_model()
    arch = resolve(model)
    read = readout(model, arch, prove(model, arch)[arch.final_norm], torch.tensor([-1, 4]), torch.tensor([-1, 9]))
    push = read.push(torch.randn(3, arch.d_model), torch.tensor([0, 1, 1]))
    assert push.isnan().tolist() == [True, False, False]
