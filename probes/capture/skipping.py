"""Blocks that need not compute again: their outputs of an earlier forward are returned instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from tv.architecture.anatomy import Architecture


@contextmanager
def recording(model: nn.Module, architecture: Architecture, outputs: dict[int, Any]) -> Iterator[None]:
    """Every block's output, as the block returns it, by layer."""
    handles = []
    try:
        for block in architecture.blocks:

            def hook(_module: nn.Module, _args: Any, output: Any, layer: int = block.layer) -> None:
                outputs[layer] = output

            handles.append(model.get_submodule(block.path).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipping(model: nn.Module, architecture: Architecture, outputs: Mapping[int, Any], first: int) -> Iterator[None]:
    """Blocks before `first` return what they returned before, without computing it.

    None do where a block passes on more than its output (`Architecture.chained`).
    """
    skipped = [(model.get_submodule(block.path), block.layer) for block in architecture.blocks if block.layer < first]
    if not architecture.chained:
        skipped = []
    kept = [(module, module.__dict__.get("forward")) for module, _ in skipped]  # accelerate may have set one
    try:
        for module, layer in skipped:
            module.forward = lambda *_args, _output=outputs[layer], **_kwargs: _output
        yield
    finally:
        for module, forward in kept:
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward
