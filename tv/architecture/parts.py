"""The parts of a block: which children are norms, and what the others compute."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile

from torch import nn

from tv.architecture import names
from tv.architecture.anatomy import Component
from tv.architecture.experts import SHARED


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by its class; what holds norms is none, but for a gated norm around one."""
    name, inside = type(module).__name__.lower(), sum(map(is_norm, module.children()))
    return "norm" in name and (inside == 0 or (inside == 1 and name.endswith("norm")))


def kind_of(name: str, module: nn.Module, block: nn.Module) -> Component | None:
    """What a child of a block computes: by its class, else by its name; None where neither says."""
    own, around = type(module).__name__, type(block).__name__
    if own in names.CLASSES:
        return names.CLASSES[own]
    words = [re.findall(r"[A-Z][^A-Z]*|^[^A-Z]+", text) for text in (own, around)]
    family = [one for one, two in takewhile(lambda pair: pair[0] == pair[1], zip(*words, strict=False))]
    for text in ("".join(words[0][len(family) :]), name):
        for pattern, component in names.KINDS:
            if pattern.search(text):
                return component
    return None


def children_of(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a block that have weights, those in a list one by one."""
    for name, child in block.named_children():
        inner = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        yield from ((f"{name}.{i}".rstrip("."), part) for i, part in inner if has_weights(part))


def number_of(component: Component) -> int:
    """Which of its kind in a block, from 1."""
    last = component.rpartition("_")[2]
    return int(last) if last.isdigit() else 1


def is_mlp(component: Component) -> bool:
    return component.rstrip("_0123456789") == "mlp" or component in SHARED


def has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def has_matrices(module: nn.Module) -> bool:
    """Whether it can compute more than a scale."""
    return any(parameter.ndim > 1 for parameter in module.parameters())
