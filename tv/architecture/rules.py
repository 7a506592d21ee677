"""The rule set that names a model's modules and sites off the Hugging Face module tree.

Names and shapes alone are read, so the tree may live on the meta device. A rule that does not fit refuses: it never
guesses at a matrix that no module claims or a fused one whose slices do not add up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.architecture.anatomy import Architecture, Block, Component, Module
from tv.architecture.experts import EXPERT_ORDER, ROUTER, expert_modules, is_mixture
from tv.architecture.sizes import sizes_of
from tv.errors import ArchitectureError

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
_ORDER = (*_ATTENTION_ORDER, "mlp_norm", *EXPERT_ORDER, "gate", "up", "down", "mlp_post_norm")
_INTERLEAVED = {"query_key_value"}  # stored head by head: q, k, v of head 0, then of head 1, …
_PRE_ATTENTION_NORM = ("input_layernorm", "attention_layernorm", "ln_1")
_MLP_NORM = ("pre_feedforward_layernorm", "post_attention_layernorm", "feedforward_layernorm", "ln_2")
#: Pairs of norms between the projections and the residual stream (sandwich norms).
_POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
)
_HEAD_NORMS = {
    "q_norm": ("q_norm", "q_layernorm", "query_layernorm"),
    "k_norm": ("k_norm", "k_layernorm", "key_layernorm"),
}


def by_rules(model: PreTrainedModel) -> Architecture:
    """Name every module and site of `model`. Raises ArchitectureError, naming the place, where no rule fits."""
    return _Resolver(model).architecture()


class _Resolver:
    """Reads one module tree; its methods are the rules."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.config = model, model.config.get_text_config()
        self.kind = type(model).__name__
        self.sizes = sizes_of(model.config)
        self.n_heads, self.n_kv_heads, self.d_head = self.sizes.n_heads, self.sizes.n_kv_heads, self.sizes.d_head
        if not all(asdict(self.sizes).values()):
            self._refuse("no one number of layers, heads or widths", "its configuration")
        self.names = {module: name for name, module in model.named_modules()}

    def architecture(self) -> Architecture:
        stack_path, stack = self._stack()
        trunk = self.model.get_submodule(stack_path.rpartition(".")[0])
        embed, unembed = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        final_norm = self._child(trunk, ("norm", "ln_f", "final_layer_norm", "final_layernorm"))
        if embed is None or unembed is None or final_norm is None:
            self._refuse("no embedding, unembedding or final norm found", stack_path)
        embed_path, unembed_path = self.names[embed], self.names[unembed]
        tied = unembed.weight is embed.weight
        modules = [self._embedding(embed_path, "embed", embed)]
        position = self._child(trunk, ("wpe",))
        if position is not None:
            modules.append(self._embedding(self.names[position], "pos_embed", position))
        blocks, gated = [], True
        for layer, block in enumerate(stack):
            path = f"{stack_path}.{layer}"
            blocks.append(self._block(layer, path, block))
            block_modules = sorted(self._block_modules(layer, path, block), key=_execution_order)
            modules += block_modules
            gated = gated and any(module.name == "gate" for module in block_modules)
        self._require_all(stack_path, modules)
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
            **asdict(self.sizes),
            vocab_size=embed.weight.shape[0],
            gated=gated,
            modules=tuple(modules),
            blocks=tuple(blocks),
            final_norm=self.names[final_norm],
            embed=embed_path,
            unembed=unembed_path,
        )

    def _require_all(self, stack_path: str, modules: list[Module]) -> None:
        """Refuse where a matrix or a gain of the blocks is in no module: the rules then miss part of the model."""
        named = {module.parameter for module in modules}
        for name, parameter in self.model.named_parameters():
            inside = name.startswith(f"{stack_path}.") and (parameter.ndim > 1 or name.endswith("norm.weight"))
            if inside and name not in named:
                owner, _, leaf = name.removesuffix(".weight").rpartition(".")
                self._refuse(f"no rule knows {leaf!r}", owner)

    def _stack(self) -> tuple[str, nn.ModuleList]:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == self.sizes.n_layers:
                return name, module
        self._refuse("no list of its blocks found", "the module tree")

    def _block(self, layer: int, path: str, block: nn.Module) -> Block:
        attention, mlp = self._attention(block, path), self._mlp(block, path)
        attn_post, mlp_post = self._post_norms(block)
        mlp_norm = self._mlp_norm(block)
        out = next((m for n, m in attention.named_children() if _ATTENTION.get(n) == ("o",)), None)
        act = next((m for n, m in mlp.named_children() if re.fullmatch(r"act|act_fn|activation_fn", n)), None)
        mixture = is_mixture(mlp)
        if out is None or (act is None and not mixture):
            self._refuse("no attention output projection or no activation module found", path)
        parallel = getattr(self.config, "use_parallel_residual", False)
        router = self._child(mlp, ROUTER) if mixture else None
        return Block(
            layer=layer,
            path=path,
            attn_out=self.names[attn_post or attention],
            mlp_out=self.names[mlp_post or mlp],
            mid=None if parallel else self.names[mlp_norm or mlp],
            gate=None if act is None or mixture else self.names[act],
            router=None if router is None else self.names[router],
            experts=self.names[mlp.get_submodule("experts")] if mixture else None,
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
        for name, leaves in _HEAD_NORMS.items():
            if (norm := self._child(attention, leaves)) is not None:
                yield self._norm(layer, name, "attn", norm)
        if attn_post is not None:
            yield self._norm(layer, "attn_post_norm", "attn", attn_post)
        if mlp_norm is not None:
            yield self._norm(layer, "mlp_norm", "mlp", mlp_norm)
        if is_mixture(mlp):
            yield from expert_modules(self.kind, layer, self.names[mlp], mlp)
        else:
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
            slices = list(self._slices(leaf, rules[leaf], rows))
            covered = sum(stop - start for _, ranges in slices for start, stop in ranges)
            if covered not in (0, rows) or (leaf == "c_attn" and not transposed):  # only GPT-2's is q, k, v
                self._refuse(f"no rule cuts the fused matrix {leaf!r}", self.names[parent])
            for name, ranges in slices:
                taken = sum(stop - start for start, stop in ranges) or rows
                heads = self.sizes.heads_of(name)
                if heads and heads * self.d_head != (cols if name == "o" else taken):
                    self._refuse(f"the matrix {leaf!r} is not {heads} heads of {self.d_head}", self.names[parent])
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
        mlp = self._child(block, ("mlp", "feed_forward", "block_sparse_moe"))
        if mlp is None:
            self._refuse("no MLP found", path)
        return mlp

    def _post_norms(self, block: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
        for after_attention, after_mlp in _POST_NORMS:
            if (mlp_post := getattr(block, after_mlp, None)) is not None:
                return getattr(block, after_attention, None), mlp_post
        return None, None

    def _mlp_norm(self, block: nn.Module) -> nn.Module | None:
        sandwich = hasattr(block, "post_feedforward_layernorm")
        return self._child(block, _MLP_NORM[:1] if sandwich else _MLP_NORM)

    @staticmethod
    def _child(parent: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
        return next((getattr(parent, name) for name in names if getattr(parent, name, None) is not None), None)

    def _refuse(self, what: str, where: str) -> NoReturn:
        raise ArchitectureError(f"{self.kind}: {what} in {where}")


def _execution_order(module: Module) -> tuple[int, int, int]:
    """Experts come one after the other, each with its gate, up and down."""
    place = _ORDER.index(module.name)
    return (_ORDER.index("gate"), module.expert, place) if module.expert >= 0 else (place, -1, place)
