"""Modules and sites of an architecture, read off the Hugging Face module tree by one rule set.

A *module* is one weight matrix, or the slice of a fused one. A *block* names the places where a hook reads. Both come
from names and shapes alone, so the tree may live on the meta device: no weight is loaded. Whether the names mean what
the rules say is not assumed but proved when a model is loaded (`probes.pair`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tv.errors import ArchitectureError

Component = Literal["embed", "attn", "mlp", "unembed"]

#: Leaf names of each matrix. A fused leaf lists its slices in the order in which they are stored.
_ATTENTION = {
    "q_proj": ("q",),
    "k_proj": ("k",),
    "v_proj": ("v",),
    "o_proj": ("o",),
    "out_proj": ("o",),
    "c_proj": ("o",),
    "dense": ("o",),
    "qkv_proj": ("q", "k", "v"),
    "c_attn": ("q", "k", "v"),
    "query_key_value": ("q", "k", "v"),
}
_MLP = {
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
    "gate_up_proj": ("gate", "up"),
    "c_fc": ("up",),
    "c_proj": ("down",),
    "fc1": ("up",),
    "fc2": ("down",),
    "dense_h_to_4h": ("up",),
    "dense_4h_to_h": ("down",),
}
#: Execution order inside a block.
_ATTENTION_ORDER = ("attn_norm", "q", "k", "v", "q_norm", "k_norm", "o", "attn_post_norm")
_ORDER = (*_ATTENTION_ORDER, "mlp_norm", "gate", "up", "down", "mlp_post_norm")
_INTERLEAVED = {"query_key_value"}  # stored head by head: q, k, v of head 0, then of head 1, …
_PRE_ATTENTION_NORM = ("input_layernorm", "ln_1")
_MLP_NORM = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")


@dataclass(frozen=True)
class Module:
    """One weight matrix of the model, norm gains included.

    `layer` is −1 for the embedding and `n_layers` for the final norm and the unembedding, so that it orders by depth.
    """

    layer: int
    name: str  # embed pos_embed q k v o gate up down unembed, or a norm: attn_norm q_norm k_norm mlp_norm …
    kind: Literal["linear", "norm", "embed"]
    component: Component
    path: str  # of the Hugging Face module that owns the weight
    parameter: str  # of the weight in a checkpoint (the embedding's, where the unembedding is tied to it)
    shape: tuple[int, ...]  # (rows, cols) = (out, in); (d,) for a norm gain
    ranges: tuple[tuple[int, int], ...] = ()  # output rows of a fused matrix that are this module's; () = all
    transposed: bool = False  # stored (in, out), as GPT-2's Conv1D is
    n_heads: int = 0  # heads it is cut into: by rows for q, k, v, by columns for o; 0 = none
    tied: bool = False
    expert: int = -1  # index into a fused tensor of experts (expert, rows, cols); −1 = none

    def matrix(self, stored: Float[Tensor, "..."]) -> Float[Tensor, "rows cols"]:
        """This module's matrix, (out, in), out of the tensor as stored (a view wherever that is possible)."""
        return self.outputs(stored.T if self.transposed else stored, dim=0)

    def outputs(self, tensor: Tensor, dim: int = -1) -> Tensor:
        """This module's share of a fused output: its slice of `tensor` along `dim` (the bias, or what a hook saw)."""
        if not self.ranges:
            return tensor
        parts = [tensor.narrow(dim, start, stop - start) for start, stop in self.ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def heads(self, matrix: Float[Tensor, "rows cols"]) -> list[Float[Tensor, "rows_h cols_h"]]:
        """The per-head slices of `matrix`: rows of q, k, v; columns of o."""
        return list(matrix.chunk(self.n_heads, dim=1 if self.name == "o" else 0)) if self.n_heads else []


@dataclass(frozen=True)
class Block:
    """Where hooks read in one transformer block; every field is a module path."""

    layer: int
    path: str  # input = resid_pre, output = resid_post
    attn_out: str  # its output is what attention adds to the residual stream
    mlp_out: str  # its output is what the MLP adds
    mid: str | None  # its input is resid_mid; None where attention and MLP run in parallel
    gate: str  # the activation module: its input is the gate (or the pre-activation of an MLP without one)
    head_in: str  # the output projection: its input is z, heads side by side
    attn_post_norm: str | None  # a norm between the projection and the residual stream (sandwich norms)


@dataclass(frozen=True)
class Architecture:
    """What the instrument knows of a model: its sizes, its modules in execution order, its blocks."""

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab_size: int
    context: int
    gated: bool  # the MLPs are GLUs; otherwise the sign of the pre-activation stands in for the gate pattern
    modules: tuple[Module, ...]
    blocks: tuple[Block, ...]
    final_norm: str
    embed: str
    unembed: str

    def module(self, layer: int, name: str) -> Module:
        """The module `name` of `layer`. Raises KeyError where there is none."""
        for module in self.modules:
            if (module.layer, module.name) == (layer, name):
                return module
        raise KeyError(f"no module {name!r} in layer {layer}")

    def component_of(self, parameter: str) -> tuple[int, Component]:
        """The component (layer, name) that a parameter of the model belongs to. Every parameter has exactly one."""
        for block in self.blocks:
            if parameter.startswith(block.path + "."):
                rest = parameter.removeprefix(block.path + ".")
                mlp = re.match(r"(mlp|feed_forward|ln_2|pre_feedforward|post_feedforward)", rest)
                after_attention = rest.startswith("post_attention_layernorm") and block.attn_post_norm is None
                return block.layer, "mlp" if mlp or after_attention else "attn"
        late = parameter.startswith((self.final_norm + ".", self.unembed + "."))
        return (self.n_layers, "unembed") if late else (-1, "embed")


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model's module tree on the meta device: names and shapes, no weights."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ArchitectureError(
            f"model type {config.model_type!r}: transformers has no causal language model of it; name one that has"
        ) from error


def resolve(model: PreTrainedModel) -> Architecture:
    """Name every module and site of `model` (live, or a `skeleton`).

    Raises ArchitectureError, naming the place, where no rule fits.
    """
    return _Resolver(model).architecture()


class _Resolver:
    """Reads one module tree; its methods are the rules."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.config = model, model.config.get_text_config()
        self.kind = type(model).__name__
        self.n_heads: int = self.config.num_attention_heads
        self.n_kv_heads: int = getattr(self.config, "num_key_value_heads", None) or self.n_heads
        self.d_model: int = self.config.hidden_size
        self.d_head: int = getattr(self.config, "head_dim", None) or self.d_model // self.n_heads
        self.names = {module: name for name, module in model.named_modules()}

    def architecture(self) -> Architecture:
        stack_path, stack = self._stack()
        trunk = self.model.get_submodule(stack_path.rpartition(".")[0])
        embed, unembed = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        final_norm = self._child(trunk, ("norm", "ln_f", "final_layer_norm", "final_layernorm"))
        if embed is None or unembed is None or final_norm is None:
            self._refuse("no embedding, unembedding or final norm found", stack_path)
        embed_path, unembed_path = self.names[embed], self.names[unembed]
        tied = bool(self.config.tie_word_embeddings)
        modules = [self._embedding(embed_path, "embed", embed)]
        position = self._child(trunk, ("wpe",))
        if position is not None:
            modules.append(self._embedding(self.names[position], "pos_embed", position))
        blocks, gated = [], True
        for layer, block in enumerate(stack):
            path = f"{stack_path}.{layer}"
            blocks.append(self._block(layer, path, block))
            modules += sorted(self._block_modules(layer, path, block), key=lambda module: _ORDER.index(module.name))
            gated = gated and any(m.layer == layer and m.name == "gate" for m in modules)
        n_layers = len(blocks)
        modules.append(self._norm(n_layers, "final_norm", "unembed", final_norm))
        modules.append(
            Module(
                n_layers,
                "unembed",
                "linear",
                "unembed",
                unembed_path,
                f"{embed_path if tied else unembed_path}.weight",
                tuple(unembed.weight.shape),
                tied=tied,
            )
        )
        return Architecture(
            name=self.kind,
            n_layers=n_layers,
            d_model=self.d_model,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_head=self.d_head,
            vocab_size=embed.weight.shape[0],
            context=getattr(self.config, "max_position_embeddings", None) or 2**31 - 1,
            gated=gated,
            modules=tuple(modules),
            blocks=tuple(blocks),
            final_norm=self.names[final_norm],
            embed=embed_path,
            unembed=unembed_path,
        )

    def _stack(self) -> tuple[str, nn.ModuleList]:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.config.num_hidden_layers:
                return name, module
        self._refuse("no list of its blocks found", "the module tree")

    def _block(self, layer: int, path: str, block: nn.Module) -> Block:
        attention, mlp = self._attention(block, path), self._mlp(block, path)
        attn_post, mlp_post = self._post_norms(block)
        mlp_norm = self._mlp_norm(block)
        out = next((m for n, m in attention.named_children() if _ATTENTION.get(n) == ("o",)), None)
        act = next((m for n, m in mlp.named_children() if re.fullmatch(r"act|act_fn|activation_fn", n)), None)
        if out is None or act is None:
            self._refuse("no attention output projection or no activation module found", path)
        parallel = getattr(self.config, "use_parallel_residual", False)
        return Block(
            layer=layer,
            path=path,
            attn_out=self.names[attn_post or attention],
            mlp_out=self.names[mlp_post or mlp],
            mid=None if parallel else self.names[mlp_norm or mlp],
            gate=self.names[act],
            head_in=self.names[out],
            attn_post_norm=self.names[attn_post] if attn_post is not None else None,
        )

    def _block_modules(self, layer: int, path: str, block: nn.Module) -> Iterator[Module]:
        attention, mlp = self._attention(block, path), self._mlp(block, path)
        attn_post, mlp_post = self._post_norms(block)
        attn_norm, mlp_norm = self._child(block, _PRE_ATTENTION_NORM), self._mlp_norm(block)
        if attn_norm is not None:
            yield self._norm(layer, "attn_norm", "attn", attn_norm)
        yield from self._matrices(layer, "attn", attention, _ATTENTION)
        for name in ("q_norm", "k_norm"):
            if (norm := getattr(attention, name, None)) is not None:
                yield self._norm(layer, name, "attn", norm)
        if attn_post is not None:
            yield self._norm(layer, "attn_post_norm", "attn", attn_post)
        if mlp_norm is not None:
            yield self._norm(layer, "mlp_norm", "mlp", mlp_norm)
        yield from self._matrices(layer, "mlp", mlp, _MLP)
        if mlp_post is not None:
            yield self._norm(layer, "mlp_post_norm", "mlp", mlp_post)

    def _matrices(
        self, layer: int, component: Component, parent: nn.Module, rules: dict[str, tuple[str, ...]]
    ) -> Iterator[Module]:
        for leaf, child in parent.named_children():
            weight = getattr(child, "weight", None)
            if weight is None or weight.ndim != 2:
                continue
            if leaf not in rules:
                self._refuse(f"no rule knows the matrix {leaf!r}", self.names[parent])
            transposed = type(child).__name__ == "Conv1D"
            rows, cols = reversed(weight.shape) if transposed else weight.shape
            path = self.names[child]
            for name, ranges in self._slices(leaf, rules[leaf], rows):
                taken = sum(stop - start for start, stop in ranges) or rows
                heads = {"q": self.n_heads, "o": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}.get(name, 0)
                yield Module(
                    layer,
                    name,
                    "linear",
                    component,
                    path,
                    f"{path}.weight",
                    (taken, cols),
                    ranges=ranges,
                    transposed=transposed,
                    n_heads=heads,
                )

    def _slices(
        self, leaf: str, names: tuple[str, ...], rows: int
    ) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
        if len(names) == 1:
            yield names[0], ()
        elif leaf in _INTERLEAVED:
            d = self.d_head
            for i, name in enumerate(names):
                yield name, tuple(((3 * h + i) * d, (3 * h + i + 1) * d) for h in range(self.n_heads))
        elif len(names) == 2:
            yield names[0], ((0, rows // 2),)
            yield names[1], ((rows // 2, rows),)
        else:
            q, kv = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
            yield "q", ((0, q),)
            yield "k", ((q, q + kv),)
            yield "v", ((q + kv, q + 2 * kv),)

    def _norm(self, layer: int, name: str, component: Component, norm: nn.Module) -> Module:
        path, gain = self.names[norm], getattr(norm, "weight", None)
        if not isinstance(gain, Tensor):
            self._refuse("a norm without a gain", path)
        return Module(layer, name, "norm", component, path, f"{path}.weight", tuple(gain.shape))

    def _embedding(self, path: str, name: str, module: Any) -> Module:
        return Module(-1, name, "embed", "embed", path, f"{path}.weight", tuple(module.weight.shape))

    def _attention(self, block: nn.Module, path: str) -> nn.Module:
        attention = self._child(block, ("self_attn", "attn", "attention"))
        if attention is None:
            self._refuse("no attention found", path)
        return attention

    def _mlp(self, block: nn.Module, path: str) -> nn.Module:
        mlp = self._child(block, ("mlp", "feed_forward"))
        if mlp is None:
            self._refuse("no MLP found", path)
        if any("expert" in name for name, _ in mlp.named_children()):
            self._refuse("a mixture of experts, which this version does not measure", path)
        return mlp

    def _post_norms(self, block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
        mlp_post = getattr(block, "post_feedforward_layernorm", None)
        return (getattr(block, "post_attention_layernorm", None), mlp_post) if mlp_post is not None else (None, None)

    def _mlp_norm(self, block: nn.Module) -> nn.Module | None:
        sandwich = hasattr(block, "post_feedforward_layernorm")
        return self._child(block, _MLP_NORM[:1] if sandwich else _MLP_NORM)

    @staticmethod
    def _child(parent: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
        return next((getattr(parent, name) for name in names if getattr(parent, name, None) is not None), None)

    def _refuse(self, what: str, where: str) -> NoReturn:
        raise ArchitectureError(f"{self.kind}: {what} in {where}; this architecture is not supported yet")
