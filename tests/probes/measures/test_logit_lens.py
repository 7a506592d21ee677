"""The logit lens: at the last layer it is the model, and ranks, probabilities and KL are what they are called."""

import pytest
import torch

from probes.capture.hooks.plan import plan
from probes.capture.hooks.torch_backend import capture
from probes.capture.proof import prove
from probes.measures import logit_lens
from probes.measures.logit_lens import Lens, Reader, compare_lenses
from tests.pairs import MEASURED, build_model, perturb
from tv.architecture.resolve import resolve

IDS = torch.randint(3, 307, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
TARGET = torch.cat([IDS[:, 1:], torch.full((2, 1), -1)], dim=1).flatten()


def lens_of(architecture: str, layer: int) -> tuple[Lens, torch.Tensor, torch.Tensor]:
    base, tuned = build_model(architecture), build_model(architecture)
    perturb(tuned, 0.1, seed=5)
    arch, flow = prove(base, resolve(base))
    form = flow.norms[arch.final_norm]
    streams, logits = [], []
    for model in (base, tuned):
        seen, out = capture(model, plan(arch, ["resid_post"]), INPUTS)
        streams.append(seen[arch.blocks[layer].path].output.flatten(0, 1))
        logits.append(out.flatten(0, 1).float())
    readers = [Reader.of(model, arch, form, flow.logit_scale, flow.cap) for model in (base, tuned)]
    with torch.inference_mode():
        return compare_lenses(*streams, readers, TARGET), *logits


@pytest.mark.parametrize("architecture", MEASURED)
def test_at_the_last_layer_the_lens_is_the_model(architecture: str) -> None:
    lens, base, tuned = lens_of(architecture, 2)
    known = TARGET >= 0
    for side, logits in (("base", base), ("tuned", tuned)):
        order = logits.argsort(1, descending=True)
        rank = (order == TARGET[:, None]).float().argmax(1)
        prob = logits.softmax(1).gather(1, TARGET.clamp(min=0)[:, None])[:, 0]
        assert torch.equal(getattr(lens, f"rank_{side}")[known], rank[known])
        torch.testing.assert_close(getattr(lens, f"prob_{side}")[known], prob[known], rtol=1e-3, atol=1e-6)
        assert bool((getattr(lens, f"rank_{side}")[~known] == -1).all())
        assert bool(getattr(lens, f"prob_{side}")[~known].isnan().all())
    kl = torch.nn.functional.kl_div(tuned.log_softmax(1), base.log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(lens.kl, kl, rtol=1e-3, atol=1e-5)
    assert float(lens.kl.min()) > 1e-5


def test_earlier_layers_say_something_else_and_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    last, early = lens_of("llama", 2)[0], lens_of("llama", 0)[0]
    assert not torch.allclose(last.kl, early.kl, rtol=0.05)
    monkeypatch.setattr(logit_lens, "_PIECE", 700)
    for name, value in vars(lens_of("llama", 0)[0]).items():
        torch.testing.assert_close(value, getattr(early, name), equal_nan=True)
