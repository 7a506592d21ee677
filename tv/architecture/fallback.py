"""Architectures that tv's rules do not cover: roles come from TransformerLens's adapter, or matrices go by name alone.

Every matrix becomes a module, under the role that TransformerLens's adapter gives it, else under its name in the
checkpoint. Fused matrices stay whole, a matrix is transposed only where its class says so, and roles that the shapes
contradict are dropped. There are no blocks: such a model's weights can be measured, its activations cannot.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tv.architecture.anatomy import Architecture, Component, Module, Roles
from tv.architecture.experts import layout_of, stacked_modules
from tv.architecture.sizes import Sizes, sizes_of
from tv.architecture.trunk import ends_of
from tv.architecture.values import values_of
from tv.errors import ArchitectureError, first_line

#: The versions of TransformerLens whose interface this is.
_KNOWN = "4.3"
_Role: TypeAlias = tuple[str, Component]
#: What TransformerLens calls a matrix or a gain, our name of that role, and the component it is part of; in the order
#: of execution.
_ROLES: Mapping[str, _Role] = {
    "pos_embed": ("pos_embed", "embed"),
    "ln1": ("attn_norm", "attn"),
    "attn.q": ("q", "attn"),
    "attn.k": ("k", "attn"),
    "attn.v": ("v", "attn"),
    "attn.qkv": ("qkv", "attn"),
    "attn.q_norm": ("q_norm", "attn"),
    "attn.k_norm": ("k_norm", "attn"),
    "attn.o": ("o", "attn"),
    "ln1_post": ("attn_post_norm", "attn"),
    "ln2": ("mlp_norm", "mlp"),
    "mlp.gate": ("gate", "mlp"),
    "mlp.in": ("up", "mlp"),
    "mlp.out": ("down", "mlp"),
    "mlp.dense_gate": ("gate", "mlp"),
    "mlp.dense_in": ("up", "mlp"),
    "mlp.dense_out": ("down", "mlp"),
    "mlp.router": ("router", "mlp"),
    "ln2_post": ("mlp_post_norm", "mlp"),
    "ln_final": ("final_norm", "unembed"),
}
_ORDER = {"embed": -1} | {name: i for i, (name, _) in enumerate(_ROLES.values())} | {"unembed": len(_ROLES)}
#: Path segments that name attention or an MLP.
_ATTENTION, _MLP = re.compile(r"attn|attention"), re.compile(r"mlp|ffn|feed_forward|moe|experts")


@dataclass(frozen=True)
class _Weight:
    """A parameter that is a matrix, a stack of experts, or a norm's gain, and where it lies."""

    parameter: str
    tensor: Tensor
    path: str  # of the module that owns it
    owner: nn.Module
    layer: int  # −1 outside the blocks
    name: str  # its path below the block; outside the blocks all of it

    @property
    def is_norm(self) -> bool:
        return self.tensor.ndim == 1

    @property
    def is_transposed(self) -> bool:
        """Whether its class says that it is stored (in, out)."""
        stacked = self.tensor.ndim == 3 and bool(getattr(self.owner, "is_transposed", False))
        return stacked or type(self.owner).__name__ == "Conv1D"

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) of a matrix or of one expert, (d,) of a gain."""
        shape = tuple(self.tensor.shape[-2:])
        return shape[::-1] if self.is_transposed else shape


@dataclass(frozen=True)
class _Tree:
    """What a model shows before any role is known."""

    kind: str
    sizes: Sizes
    vocabulary: tuple[Module, ...]  # embedding and unembedding: transformers itself says which they are
    weights: tuple[_Weight, ...]  # all others, in the order of the model
    parameters: Mapping[str, tuple[int, str, tuple[int, ...]]]  # of every parameter its layer, name there, and shape


def by_adapter(model: PreTrainedModel, why: str) -> Architecture | None:
    """Name every matrix by the role that TransformerLens's adapter of this architecture gives it.

    None where TransformerLens is not installed, does not know the architecture, or says nothing of its blocks.
    """
    tree = _read(model)
    roles = _roles(tree, _answers(model, tree.weights))
    if not any(weight.layer >= 0 and not weight.is_norm and weight.parameter in roles for weight in tree.weights):
        return None
    mixtures = _mixtures(model, tree)
    unknown = sum(weight.parameter not in roles and weight.parameter not in mixtures for weight in tree.weights)
    rest = f"; tensors without one, under their own names: {unknown}" if unknown else ""
    return _architecture(tree, roles, mixtures, "adapter", f"roles are TransformerLens's ({why}){rest}")


def by_name(model: PreTrainedModel, why: str) -> Architecture:
    """Every matrix, every expert and every gain of a norm under its name in the checkpoint."""
    absent = find_spec("transformer_lens") is None
    other = "TransformerLens, which may know them, is not installed" if absent else "TransformerLens has none either"
    note = f"roles are unknown ({why}; {other}): every matrix stands under its own name, as stored"
    return _architecture(_read(model), {}, {}, "unknown", note)


def _architecture(
    tree: _Tree, roles: Mapping[str, _Role], mixtures: Mapping[str, Sequence[Module]], role_source: Roles, note: str
) -> Architecture:
    modules = list(tree.vocabulary)
    for weight in tree.weights:
        modules += mixtures.get(weight.parameter) or _modules(weight, roles.get(weight.parameter), tree.sizes)
    paths = {module.name: module.path for module in modules}
    return Architecture(
        name=tree.kind,
        **asdict(tree.sizes),
        vocab_size=next((module.shape[0] for module in modules if module.name == "embed"), 0),
        gated=any(module.name == "gate" for module in modules),
        modules=tuple(sorted(modules, key=lambda module: (module.layer, _ORDER.get(module.name, _ORDER["router"])))),
        blocks=(),
        final_norm=paths.get("final_norm", ""),
        embed=paths.get("embed", ""),
        unembed=paths.get("unembed", ""),
        roles=role_source,
        note=f"{tree.kind}: {note}",
        others=tuple(_others(tree, modules)),
    )


def _others(tree: _Tree, modules: Sequence[Module]) -> Iterator[Module]:
    """A row for every parameter that is no module and no bias of one."""
    known = {module.parameter for module in modules}
    known |= {f"{module.path}.bias" for module in modules if module.expert < 0}
    for parameter, (layer, name, shape) in tree.parameters.items():
        if parameter not in known:
            yield Module(layer, name, "vector", "other", parameter.rpartition(".")[0], parameter, shape)


def _modules(weight: _Weight, role: _Role | None, sizes: Sizes) -> Iterator[Module]:
    """One module, or one for every expert of a stack."""
    name, component = role or (weight.name, _component(weight))
    kind: Literal["linear", "norm", "embed"] = (
        "norm" if weight.is_norm else "embed" if name == "pos_embed" else "linear"
    )
    layer = sizes.n_layers if name == "final_norm" else weight.layer
    heads = _heads(name, weight.shape, sizes) if role else 0
    stacked = weight.tensor.ndim == 3
    for expert in range(weight.tensor.shape[0]) if stacked else (-1,):
        yield Module(
            layer,
            name,
            kind,
            component,
            weight.path,
            weight.parameter,
            weight.shape,
            transposed=weight.is_transposed,
            n_heads=heads,
            expert=expert,
        )


def _heads(name: str, shape: tuple[int, ...], sizes: Sizes) -> int:
    heads = sizes.heads_of(name)
    return heads if shape[-1 if name == "o" else 0] == heads * sizes.d_head else 0


def _component(weight: _Weight) -> Component:
    """The component that its path names, inside a block."""
    for segment in weight.name.split(".") if weight.layer >= 0 else ():
        if "norm" in segment:  # of a norm before the component, or after it?
            return "other"
        if _ATTENTION.search(segment):
            return "attn"
        if _MLP.search(segment):
            return "mlp"
    return "other"


def _roles(tree: _Tree, answers: Mapping[str, str]) -> dict[str, _Role]:
    """The roles in TransformerLens's answers, without those that the shapes contradict.

    A role that two tensors of a layer claim goes to neither. Queries, keys and values must have as many rows as their
    heads, gate and up projections as many as the down projection has columns: anything longer is fused.
    """
    claims = {
        weight: _ROLES[answers[weight.parameter]] for weight in tree.weights if answers.get(weight.parameter) in _ROLES
    }
    claims = {weight: role for weight, role in claims.items() if weight.is_norm == ("norm" in role[0])}
    count = Counter((weight.layer, role) for weight, role in claims.items())
    d_ff = {weight.layer: weight.shape[1] for weight, role in claims.items() if role[0] == "down"}

    def fits(weight: _Weight, role: _Role) -> bool:
        if count[weight.layer, role] > 1 or weight.tensor.ndim > 2:
            return False
        if role[0] in ("q", "k", "v"):
            return _heads(role[0], weight.shape, tree.sizes) > 0
        return role[0] not in ("gate", "up") or weight.shape[0] == d_ff.get(weight.layer)

    return {weight.parameter: role for weight, role in claims.items() if fits(weight, role)}


def _answers(model: PreTrainedModel, weights: Sequence[_Weight]) -> dict[str, str]:
    """TransformerLens's name for each parameter, without the layer; empty where it is absent or lacks the architecture.

    It is asked about parameters, not components: some components name places that a fused module does not have.

    Raises:
        ArchitectureError: TransformerLens does not answer as its known versions do.
    """
    if find_spec("transformer_lens") is None:
        return {}
    step = "import"
    try:
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
        from transformer_lens.model_bridge.sources import build_bridge_config_from_hf

        step = "build_bridge_config_from_hf"
        config = build_bridge_config_from_hf(model.config, type(model).__name__, "x", torch.float32)
        step = "select_architecture_adapter"
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(config)
        step = "convert_hf_key_to_tl_key"
        answers = {weight.parameter: adapter.convert_hf_key_to_tl_key(weight.parameter) for weight in weights}
    except ValueError:  # the architecture, or this configuration of it, is not supported
        return {}
    except (ImportError, AttributeError, TypeError, KeyError) as error:
        if isinstance(error, ImportError) and step == "select_architecture_adapter":
            return {}  # the adapter needs another library, as for images, which is not installed
        raise ArchitectureError(
            f"TransformerLens {version('transformer-lens')} does not answer as expected ({step}: {first_line(error)}) "
            f"for {type(model).__name__}; known to work: {_KNOWN}; install that version, or uninstall transformer-lens "
            "to have every matrix under its own name"
        ) from error
    return {name: re.sub(r"^blocks\.\d+\.|\.weight$", "", answer) for name, answer in answers.items()}


def _mixtures(model: PreTrainedModel, tree: _Tree) -> dict[str, Sequence[Module]]:
    """By parameter, the modules of every mixture of experts in the layout that tv's rules know."""
    layers = {weight.parameter: weight.layer for weight in tree.weights}
    mixtures: dict[str, list[Module]] = defaultdict(list)
    for path, parent in model.named_modules():
        experts = getattr(parent, "experts", None)
        if isinstance(experts, nn.Module) and layout_of(experts) is not None:
            for module in stacked_modules(layers[f"{path}.experts.down_proj"], f"{path}.experts", experts):
                mixtures[module.parameter].append(module)
    return dict(mixtures)


def _read(model: PreTrainedModel) -> _Tree:
    sizes = sizes_of(model.config)
    vocabulary = tuple(_vocabulary(model, sizes))
    taken = {module.parameter for module in vocabulary}
    weights = tuple(weight for weight in _parameters(model, sizes) if weight.parameter not in taken)
    places = _places(model, sizes)
    parameters = {name: (*places[name], tuple(value.shape)) for name, value in values_of(model).items()}
    return _Tree(type(model).__name__, sizes, vocabulary, weights, parameters)


def _vocabulary(model: PreTrainedModel, sizes: Sizes) -> Iterator[Module]:
    paths = {part: path for path, part in model.named_modules()}
    names = {id(value): name for name, value in model.named_parameters()}  # a tied matrix is listed once
    embed, unembed = ends_of(model)
    embed_name = names.get(id(getattr(embed, "weight", None)))
    if embed_name is not None:
        yield Module(-1, "embed", "embed", "embed", paths[embed], embed_name, tuple(embed.weight.shape))
    unembed_name = names.get(id(getattr(unembed, "weight", None)))
    if unembed_name is not None:
        shape = tuple(unembed.weight.shape)
        tied = unembed_name == embed_name
        yield Module(sizes.n_layers, "unembed", "linear", "unembed", paths[unembed], unembed_name, shape, tied=tied)


def _parameters(model: PreTrainedModel, sizes: Sizes) -> Iterator[_Weight]:
    """Matrices, stacks of experts and gains of norms, in the order of the model; no convolutions, no biases."""
    places = _places(model, sizes)
    for name, tensor in model.named_parameters():
        path = name.rpartition(".")[0]
        owner = model.get_submodule(path)
        if _is_measured(name, tensor, owner):
            yield _Weight(name, tensor, path, owner, *places[name])


def _places(model: PreTrainedModel, sizes: Sizes) -> dict[str, tuple[int, str]]:
    """Of every parameter the layer that it lies in, and its name there; the whole name where two would have one."""
    lists = {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    depth = sizes.n_layers or max(lists.values(), default=0)
    stacks = [path for path, length in lists.items() if length == depth]
    places = {name: _place(name, stacks) for name in values_of(model)}
    count = Counter(places.values())
    return {
        name: (layer, rest if count[layer, rest] == 1 else name.removesuffix(".weight"))
        for name, (layer, rest) in places.items()
    }


def _place(parameter: str, stacks: Sequence[str]) -> tuple[int, str]:
    """The layer that a parameter lies in, and its name there."""
    name = parameter.removesuffix(".weight")
    for stack in stacks:
        number, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if name.startswith(f"{stack}.") and number.isdigit():
            return int(number), rest or stack.rpartition(".")[2]
    return -1, name


def _is_measured(parameter: str, tensor: Tensor, owner: nn.Module) -> bool:
    if tensor.ndim == 1:
        return parameter.endswith(".weight") and "norm" in type(owner).__name__.lower()
    is_matrix = tensor.ndim == 2 or (tensor.ndim == 3 and ".experts." in parameter)
    return is_matrix and "bias" not in parameter.rpartition(".")[2]
