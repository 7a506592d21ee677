"""The logit lens: what either model would predict if a layer were its last.

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020). Each model reads with its own final norm and
unembedding, so that at the last layer the lens is the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probes.measures.losses import divergence, weighed
from probes.measures.norms import NormForm
from tv.architecture.anatomy import Architecture
from tv.checkpoints.streamed import in_memory
from tv.runtime.products import linear

#: Logits that are held at a time, of each model: so many that a product reads the unembedding seldom.
_PIECE = 2**24
#: And of these, how many are weighed together: what a core's cache holds.
_IN_CACHE = 2**19


@dataclass(frozen=True)
class Lens:
    """Both models read at one depth, at n places. NaN, and rank −1, where no target follows."""

    target_id: Int[Tensor, " n"]
    rank_base: Int[Tensor, " n"]  # of the target among the next tokens, 0 the likeliest
    rank_tuned: Int[Tensor, " n"]
    prob_base: Float[Tensor, " n"]
    prob_tuned: Float[Tensor, " n"]
    kl: Float[Tensor, " n"]  # KL(base ‖ tuned), nats, over the vocabulary in common


@dataclass(frozen=True)
class Reader:
    """How a model turns its last residual stream into logits. Its modules are not called, so that no hook fires."""

    norm: nn.Module
    unembed: nn.Module
    form: NormForm
    scale: tuple[float, float]  # of what the unembedding reads, and of the logits behind it
    cap: float | None  # of a soft cap of the logits

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        architecture: Architecture,
        form: NormForm,
        scale: tuple[float, float] = (1.0, 1.0),
        cap: float | None = None,
    ) -> Reader:
        """The model's final norm and unembedding."""
        norm, unembed = (model.get_submodule(path) for path in (architecture.final_norm, architecture.unembed))
        return cls(norm, unembed, form, scale, cap)

    def logits(self, resid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """The logits that the model computes from this residual stream, soft cap included, float32."""
        weight, bias = in_memory(self.unembed).get_parameter("weight"), getattr(self.unembed, "bias", None)
        x = resid.float().to(weight.device)
        normed = self.form.normalised(x) * self.form.gain(self.norm).to(x.device) + self.form.bias(self.norm).to(
            x.device
        )
        before, behind = self.scale
        logits = linear((normed * before).to(weight.dtype), weight, bias).float() * behind
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()


def compare_lenses(
    base: Float[Tensor, "n d_model"],
    tuned: Float[Tensor, "n d_model"],
    readers: Sequence[Reader],
    target: Int[Tensor, " n"],
) -> Lens:
    """Both models' next-token distributions at one depth, each by its reader; a `target` below 0 is none."""
    read_base, read_tuned = readers
    vocab = len(read_base.unembed.get_parameter("weight"))
    step, few = (max(1, size // vocab) for size in (_PIECE, _IN_CACHE))
    parts = [
        _compare(*logits)
        for x, y, t in zip(base.split(step), tuned.split(step), target.split(step), strict=True)
        for logits in zip(read_base.logits(x).split(few), read_tuned.logits(y).split(few), t.split(few), strict=True)
    ]
    return Lens(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


def _compare(x: Float[Tensor, "n vocab"], y: Float[Tensor, "n vocab"], target: Int[Tensor, " n"]) -> Lens:
    y = y.to(x.device)
    target = target.to(x.device)
    known, at = target >= 0, target.clamp(min=0)[:, None]
    both = weighed(x), weighed(y)
    ranks, probs = [], []
    for logits, seen in zip((x, y), both, strict=True):
        own = logits.gather(1, at)
        ranks.append(torch.where(known, (logits > own).sum(1), -1))
        prob = (own[:, 0] - seen.log_total).exp()
        probs.append(torch.where(known, prob, torch.full_like(prob, float("nan"))))
    return Lens(target, ranks[0], ranks[1], probs[0], probs[1], divergence(x, y, *both))
