"""Both models, live, and the proof that every site reads from them what its name says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from probes.capture.hooks.plan import EXPERTS, MODULE, SITES, Read, plan
from probes.capture.hooks.torch_backend import capture
from probes.measures import mixture
from probes.measures.norms import NormForm, find_form
from tv.architecture.anatomy import Architecture
from tv.architecture.resolve import resolve
from tv.checkpoints.ties import is_tied, untied
from tv.errors import ArchitectureError

#: Relative error below which two sums of a forward pass count as the same, by the dtype the model computes in.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass(frozen=True)
class Pair:
    """A base and a tuned model of one architecture, ready for paired hooks."""

    base: PreTrainedModel
    tuned: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    norms: Mapping[str, NormForm]  # by module path

    @property
    def pad_id(self) -> int:
        """The id that pads a batch on the right. Any id serves: the attention mask hides it."""
        pad = self.tokenizer.pad_token_id
        return 0 if pad is None else int(pad)


def make_pair(base: PreTrainedModel, tuned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """Put two live models together after proving both (see `prove`).

    Where the unembedding of one is its embedding and that of the other is not, both have one of their own.
    """
    if is_tied(base) != is_tied(tuned):
        base, tuned = untied(base), untied(tuned)
    architecture, other = resolve(base), resolve(tuned)
    require_sites(architecture)
    require_sites(other)
    norms = prove(base, architecture)
    prove(tuned, other)
    return Pair(base, tuned, tokenizer, architecture, norms)


def require_sites(architecture: Architecture) -> None:
    """Raise ArchitectureError where the architecture does not say where to read activations."""
    advice = "tv measures its weights, but probes cannot run on it"
    if not architecture.blocks:
        raise ArchitectureError(f"{architecture.note}; {advice}")


def prove(model: PreTrainedModel, architecture: Architecture) -> dict[str, NormForm]:
    """The self-test of an architecture: on every layer, what is read must sum to the residual stream.

    resid_pre + attn_out = resid_mid, resid_mid + mlp_out = resid_post (summed at once in a parallel block), and each
    block starts where the one before it ended. Returns the form of every norm, from the same forward. Raises
    ArchitectureError naming the first layer and sum that fails.
    """
    n = _test_length(architecture)
    ids = torch.randint(architecture.vocab_size, (1, n), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)}
    reads = plan(architecture, (*SITES, MODULE, EXPERTS))
    seen, _ = capture(model, reads, inputs)
    tolerance = TOLERANCE[model.dtype]
    at = {site: seen[read.path].at(site) for read in reads for site in read.sites if site.name in SITES}
    values = {(site.name, site.layer): value.float() for site, value in at.items()}

    def require(left: Tensor, right: Tensor, what: str, layer: int) -> None:
        error = float((left - right).norm() / right.norm())
        if not error <= tolerance:
            raise ArchitectureError(
                f"{architecture.name}: {what} does not hold in layer {layer} (relative error {error:.2g}); "
                "this architecture scales or reroutes what it writes to the residual stream and is not supported"
            )

    for block in architecture.blocks:
        layer = block.layer
        pre, post = values["resid_pre", layer], values["resid_post", layer]
        attn, mlp = values["attn_out", layer], values["mlp_out", layer]
        if block.mid is None:
            require(pre + attn + mlp, post, "resid_pre + attn_out + mlp_out = resid_post", layer)
        else:
            mid = values["resid_mid", layer]
            require(pre + attn, mid, "resid_pre + attn_out = resid_mid", layer)
            require(mid + mlp, post, "resid_mid + mlp_out = resid_post", layer)
        if block.experts is not None:
            call, experts = seen[block.experts], mixture.experts_of(architecture, layer)
            with torch.inference_mode():
                apart = mixture.total(
                    model.get_submodule(block.experts), experts, *(x.flatten(0, 1) for x in (call.input, *call.rest))
                )
            require(apart, call.output.flatten(0, 1), "the experts' sum, each computed by itself,", layer)
        after = (
            values["resid_pre", layer + 1] if layer + 1 < architecture.n_layers else values["resid_final", layer + 1]
        )
        require(after, post, "the next block reads resid_post", layer)
    return _norm_forms(model, architecture, reads, seen, n, tolerance)


def _norm_forms(
    model: nn.Module, architecture: Architecture, reads: tuple[Read, ...], seen: dict, n: int, tolerance: float
) -> dict[str, NormForm]:
    forms = {}
    for module in architecture.modules:
        if module.kind == "norm":
            form = find_form(
                model.get_submodule(module.path), seen[module.path].input, seen[module.path].output, n, tolerance
            )
            if form is None:
                raise ArchitectureError(
                    f"{architecture.name}: {module.path} is neither an RMS norm nor a layer norm; not supported"
                )
            forms[module.path] = form
    return forms


def _test_length(architecture: Architecture) -> int:
    """A few positions, but not as many as heads, so that a norm's input tells positions from heads."""
    taken = {architecture.n_heads, architecture.n_kv_heads, 1}
    return next(n for n in range(7, 16) if n not in taken)
