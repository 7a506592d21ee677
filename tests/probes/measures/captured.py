"""What one forward of a random model writes to its residual stream."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from probes.capture.hooks.plan import SITES, plan
from probes.capture.hooks.torch_backend import capture
from probes.capture.proof import Flow, prove
from tests.pairs import build_model
from tv.architecture.anatomy import Architecture
from tv.architecture.resolve import resolve

IDS = torch.randint(307, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
TARGET, FOIL = torch.tensor([5, 17]), torch.tensor([40, 3])
PROMPTS = torch.arange(2)


def proved(model: PreTrainedModel) -> tuple[Architecture, Flow]:
    """What the proof says of a model."""
    return prove(model, resolve(model))


def captured(
    architecture: str,
) -> tuple[PreTrainedModel, Architecture, Flow, dict[tuple[int, str], Tensor], Tensor, Tensor]:
    """A model and its proof, what every component adds by layer and name, the last residual stream, and the logits."""
    model = build_model(architecture)
    arch, flow = proved(model)
    reads = plan(arch, SITES)
    seen, logits = capture(model, reads, INPUTS)
    at = {s: seen[r.path].at(s).double() for r in reads for s in r.sites}
    terms = {
        (s.layer, s.component): value * flow.factor(s.layer, s.component)
        for s, value in at.items()
        if s.kind in ("embed_out", "attn_out", "mlp_out")
    }
    final = next(value for s, value in at.items() if s.name == "resid_final")
    return model, arch, flow, terms, final, logits.double()
