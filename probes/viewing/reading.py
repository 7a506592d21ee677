"""What one model makes of a text: its predictions after every token, and all that leads to one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from probes.capture.hooks.plan import Read, Seen, plan
from probes.capture.hooks.torch_backend import run_hooked
from probes.capture.pair import Pair
from probes.capture.proof import Flow
from probes.capture.reduce import scaled
from probes.measures.logit_lens import Reader
from probes.measures.losses import divergence, weighed
from tv.runtime.common_rows import common_rows

#: Logits of each model that are weighed together.
_PIECE = 2**22
_SITES = ("embed_out", "attn_out", "mlp_out", "resid_post")

#: A layer and a component, as `probes.attribution.units` counts them.
Place = tuple[int, str]


@dataclass(frozen=True)
class Reading:
    """One model at the last token of a text; on the CPU, in float32."""

    logits: Float[Tensor, " vocab"]
    lens: Float[Tensor, "layers vocab"]  # the stream behind every block, read by final norm and unembedding
    written: Mapping[Place, Float[Tensor, " d_model"]]  # what every component adds to the stream


@torch.inference_mode()
def logits_of(model: PreTrainedModel, ids: Sequence[int]) -> Float[Tensor, "pos vocab"]:
    """The model's logits after every token."""
    return run_hooked(model, (), _inputs(ids), lambda read, seen: None)[0]


def divergences(base: Float[Tensor, "pos vocab"], other: Float[Tensor, "pos vocab"]) -> Float[Tensor, " pos"]:
    """KL(base ‖ other) of the predictions of the next token, nats, at every place; over the vocabulary in common."""
    step = max(1, _PIECE // base.shape[-1])
    pieces = zip(base.split(step), other.split(step), strict=True)
    return torch.cat([_divergence(x.float(), y.to(x.device).float()) for x, y in pieces]).cpu()


def _divergence(x: Float[Tensor, "n vocab"], y: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    return divergence(x, y, weighed(x), weighed(y))


@torch.inference_mode()
def read(pair: Pair, model: PreTrainedModel, flow: Flow, ids: Sequence[int]) -> Reading:
    """Everything of `model` at the last of these tokens.

    Args:
        pair: The pair that it is of.
        model: One of the two, as it is or with some weights of the other.
        flow: How its components reach the stream.
        ids: The text.

    Returns:
        The reading. The final norm is that of the token itself, at every depth.
    """
    architecture = pair.architecture
    reader = Reader.of(model, architecture, pair.norms[architecture.final_norm], flow.logit_scale, flow.cap)
    written: dict[Place, Tensor] = {}
    depths: dict[int, Tensor] = {}

    def receive(read: Read, seen: Seen) -> None:
        for site in read.sites:
            last = seen.at(site)[0, -1].float()
            if site.kind == "resid_post":
                depths[site.layer] = reader.logits(last[None])[0].cpu()
            else:
                written[site.layer, site.component] = (
                    scaled(last, flow.factor(site.layer, site.component)).cpu().clone()
                )

    logits = run_hooked(model, plan(architecture, _SITES), _inputs(ids), receive)[0, -1].float().cpu()
    return Reading(logits, torch.stack([depths[layer] for layer in sorted(depths)]), written)


def relative_changes(base: Reading, other: Reading) -> dict[Place, float]:
    """‖other's − base's‖ / ‖base's‖ of what every component adds; NaN where the base adds nothing."""
    return {
        place: float((other.written[place] - before).norm() / before.norm()) if bool(before.any()) else float("nan")
        for place, before in base.written.items()
        if place in other.written
    }


def lens_divergences(base: Reading, other: Reading) -> list[float]:
    """KL(base ‖ other) in nats, read behind every block."""
    return divergences(*common_rows(base.lens, other.lens, dim=-1)).tolist()


def likeliest(logits: Float[Tensor, "... vocab"], n: int) -> tuple[Int[Tensor, "... n"], Float[Tensor, "... n"]]:
    """The n likeliest tokens and their probabilities, likeliest first."""
    found = logits.double().softmax(-1).topk(min(n, logits.shape[-1]))
    return found.indices, found.values


def _inputs(ids: Sequence[int]) -> dict[str, Int[Tensor, "1 pos"]]:
    row = torch.tensor([list(ids)])
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}
