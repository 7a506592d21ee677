"""A tiny pair, its prompts and a metric, by architecture."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from probes.attribution.forwards import Floats, Model, from_model, values_under
from probes.attribution.metric import Metric, metric_of
from probes.attribution.units import Unit
from probes.attribution.work import Work
from probes.capture.pair import Pair, make_pair
from tests.pairs import PROMPTS, build_model, build_tokenizer, perturb
from tv.prompts.encoding import Batch, Encoded, batches, encode
from tv.prompts.files import Prompt

GIVEN = [
    Prompt(row["id"], "tiny", row.get("domain", "tiny"), row["text"], row.get("target"), row.get("foil"))
    for row in PROMPTS
    if "foil" in row
]
DOMAINS = {prompt.id: prompt.domain for prompt in GIVEN}


class Case:
    """A pair with prompts in batches of three."""

    def __init__(self, architecture: str = "llama", step: float = 0.05) -> None:
        base, tuned = build_model(architecture), build_model(architecture)
        perturb(tuned, step, seed=9)
        self.pair: Pair = make_pair(base, tuned, build_tokenizer())
        self.batches: list[Batch] = batches(encode(GIVEN, self.pair.tokenizer, 64), 3, self.pair.pad_id)
        self.encoded: list[Encoded] = [item for batch in self.batches for item in batch.encoded]
        self.domains = DOMAINS

    def metric(self, name: str = "logit_diff") -> Metric:
        return metric_of(name, self.pair.tuned, self.batches)

    def work(self, metric: str = "logit_diff", **more: Any) -> Work:
        """What a method is given: batches of three, all alike."""
        return Work(self.pair, self.metric(metric), self.batches, 3, **more)

    def one_by_one(self, name: Model, sets: Sequence[Sequence[Unit]], metric: str = "logit_diff") -> Floats:
        """The metric of every prompt with each set of units moved, (sets, prompts), a forward pass each."""
        model, other = self.pair.models if name == "base" else self.pair.models[::-1]
        swaps = [from_model(model, other, self.pair.architecture, units) for units in sets]
        own = self.metric(metric)
        read = [list(values_under(model, self.pair.architecture, swaps, batch, own)) for batch in self.batches]
        return np.concatenate(read, axis=1)

    def keep_only(self, wanted: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        """Put the base's values into the tuned model but for where `wanted(name, tuned, base)` says."""
        before = dict(self.pair.base.named_parameters())
        with torch.no_grad():
            for name, value in self.pair.tuned.named_parameters():
                value.copy_(torch.where(wanted(name, value, before[name]), value, before[name]))


def checksum(model: nn.Module) -> str:
    """Of every bit of a model's parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture
def case() -> Case:
    return Case()
