"""What one forward of a random model writes to its residual stream."""

import torch

from probes.capture.hooks.plan import MODULE, SITES, plan
from probes.capture.hooks.torch_backend import capture
from tests.pairs import build_model
from tv.architecture.resolve import resolve

IDS = torch.randint(307, (2, 9), generator=torch.Generator().manual_seed(1))
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
TARGET, FOIL = torch.tensor([5, 17]), torch.tensor([40, 3])
PROMPTS = torch.arange(2)


def captured(architecture: str) -> tuple:
    model = build_model(architecture)
    arch = resolve(model)
    reads = plan(arch, (*SITES, MODULE))
    seen, logits = capture(model, reads, INPUTS)
    at = {s: seen[r.path].at(s) for r in reads for s in r.sites if s.name != MODULE}
    return model, arch, seen, {(s.name, s.layer): v.double() for s, v in at.items()}, logits
