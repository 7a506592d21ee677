"""Models that tv's rules find no trunk in: every matrix goes by its name in the checkpoint.

A matrix is transposed only where its class says so. There are no blocks: such a model's weights can be measured, its
activations cannot.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import Tensor, nn

from tv.architecture.anatomy import Architecture, Component, Kind, Module
from tv.architecture.sizes import Sizes, sizes_of
from tv.architecture.trunk import ends_of
from tv.architecture.values import values_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Path segments that name attention or an MLP.
_ATTENTION, _MLP = re.compile(r"attn|attention"), re.compile(r"mlp|ffn|feed_forward|moe|experts")


def by_name(model: PreTrainedModel, why: str) -> Architecture:
    """Every parameter that is no bias under its name in the checkpoint: every matrix, expert and gain is a module."""
    sizes = sizes_of(model.config)
    modules = list(_vocabulary(model, sizes))
    vocabulary = {module.parameter for module in modules}
    others: list[Module] = []
    for module in _parameters(model, sizes):
        if module.parameter not in vocabulary:
            (others if module.kind == "vector" else modules).append(module)
    biases = {f"{module.path}.bias" for module in modules}
    paths = {module.name: module.path for module in modules}
    return Architecture(
        name=type(model).__name__,
        **asdict(sizes),
        vocab_size=next((module.shape[0] for module in modules if module.name == "embed"), 0),
        gated=False,
        modules=tuple(sorted(modules, key=lambda module: (module.layer, module.name != "embed"))),
        blocks=(),
        final_norm="",
        embed=paths.get("embed", ""),
        unembed=paths.get("unembed", ""),
        roles="unknown",
        note=f"{type(model).__name__}: roles are unknown ({why}): every matrix stands under its own name, as stored",
        others=tuple(module for module in others if module.parameter not in biases),
    )


def _vocabulary(model: PreTrainedModel, sizes: Sizes) -> Iterator[Module]:
    """Embedding and unembedding: transformers itself says which they are."""
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


def _parameters(model: PreTrainedModel, sizes: Sizes) -> Iterator[Module]:
    """Every parameter in the order of the model, one module for each expert of a stack; then saved buffers."""
    lists = {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    depth = sizes.n_layers or max(lists.values(), default=0)
    stacks = [path for path, length in lists.items() if length == depth]
    trained, values = dict(model.named_parameters()), values_of(model)
    places = {name: _place(name, stacks) for name in values}
    count = Counter(places.values())
    for parameter, tensor in values.items():
        path = parameter.rpartition(".")[0]
        owner = model.get_submodule(path)
        layer, rest = places[parameter]
        name = rest if count[layer, rest] == 1 else parameter.removesuffix(".weight")
        kind, shape = _kind(parameter, tensor, owner) if parameter in trained else "vector", tuple(tensor.shape)
        component = _component(name) if layer >= 0 else "other"
        if kind != "linear":
            yield Module(layer, name, kind, component, path, parameter, shape)
            continue
        stacked = tensor.ndim == 3
        turned = bool(getattr(owner, "is_transposed", False)) if stacked else type(owner).__name__ == "Conv1D"
        own = shape[-2:][::-1] if turned else shape[-2:]
        for expert in range(len(tensor)) if stacked else (-1,):
            yield Module(layer, name, kind, component, path, parameter, own, transposed=turned, expert=expert)


def _place(parameter: str, stacks: Sequence[str]) -> tuple[int, str]:
    """The layer that a parameter lies in, and its name there."""
    name = parameter.removesuffix(".weight")
    for stack in stacks:
        number, _, rest = name.removeprefix(f"{stack}.").partition(".")
        if name.startswith(f"{stack}.") and number.isdigit():
            return int(number), rest or stack.rpartition(".")[2]
    return -1, name


def _kind(parameter: str, tensor: Tensor, owner: nn.Module) -> Kind:
    if tensor.ndim == 1:
        return "norm" if parameter.endswith(".weight") and "norm" in type(owner).__name__.lower() else "vector"
    is_matrix = tensor.ndim == 2 or (tensor.ndim == 3 and ".experts." in parameter)
    return "linear" if is_matrix and "bias" not in parameter.rpartition(".")[2] else "vector"


def _component(name: str) -> Component:
    """The component that a path inside a block names."""
    for segment in name.split("."):
        if "norm" in segment:  # of a norm before the component, or after it?
            return "other"
        if _ATTENTION.search(segment):
            return "attn"
        if _MLP.search(segment):
            return "mlp"
    return "other"
