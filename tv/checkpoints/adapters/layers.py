"""The layers that peft put into a model, and what merging them makes of a module's parameters."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tv.checkpoints.adapters.kinds import peft_version
from tv.errors import CheckpointError
from tv.runtime.peft_private import expert_factors, parameter_of, settings_of

#: What peft puts into the path of a module that it wraps.
_WRAPPED = re.compile(r"\.(base_layer|token_adapter|original_module)(?=\.|$)")
_TOLD = 300  # characters of what peft says


@dataclass(frozen=True)
class Layers:
    """The layers of peft on one module, the innermost first."""

    path: str  # of the module in the model
    layers: tuple[Any, ...]
    parameter: str | None = None  # the only parameter that they move, where they stand on one
    read: bool = False  # whether the module holds the base's weights, as peft left them

    @property
    def module(self) -> nn.Module:
        """The module of the model that they stand on."""
        module: nn.Module = self.layers[0].get_base_layer()
        return module

    @property
    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """(left, right, scaling) of every expert, where they are one LoRA on a parameter of experts."""
        return expert_factors(self.layers[0]) if len(self.layers) == 1 else None

    def merged(self, weights: Mapping[str, Tensor], shaken: bool = False) -> dict[str, Tensor]:
        """The module's parameters after merging into these, float64; with random adapters if `shaken`."""
        for layer in self.layers:
            own = {id(parameter): name for name, parameter in layer.get_base_layer().named_parameters(recurse=False)}
            memo: dict[int, Any] = {id(settings_of(layer)): settings_of(layer)}  # not copied
            for tensor in (*layer.parameters(), *layer.buffers()):
                name = own.get(id(tensor))
                value = tensor.detach()
                if name is not None:
                    value = weights[name].to("cpu", torch.float64, copy=True) if name in weights else value
                elif value.is_floating_point():
                    value = value.to("cpu", torch.float64)
                    value = value + 0.1 * torch.rand_like(value) if shaken else value
                memo[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
            copied = copy.deepcopy(layer, memo).eval()
            copied.merge()
            weights = {name: value.detach() for name, value in copied.get_base_layer().named_parameters(recurse=False)}
        return dict(weights)


def layers_of(model: nn.Module, read: bool) -> list[Layers]:
    """The layers that peft put into a model, by module, those that are switched off left out."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: dict[tuple[str, str | None], list[Any]] = {}
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not module.disable_adapters and module.active_adapters:
            where = _WRAPPED.sub("", path), parameter_of(module)
            found.setdefault(where, []).insert(0, module)
    return [Layers(path, tuple(layers), leaf, read) for (path, leaf), layers in found.items()]


def moved_leaves(source: str, form: str, layers: Sequence[Layers]) -> Iterator[tuple[Layers, str, float]]:
    """(layers, parameter, share of its entries whose T is formed from them) of all that peft's merge can move.

    One module of each name, shape and setting is merged, so that what cannot be is refused before any work. Raises
    CheckpointError.
    """
    kinds: dict[object, dict[str, float]] = {}
    for one in layers:
        shapes = [(name, value.shape) for name, value in one.module.named_parameters(recurse=False)]
        switches = [pair for layer in one.layers for pair in vars(layer).items() if isinstance(pair[1], bool)]
        kind = (one.path.rpartition(".")[2], one.parameter, *shapes, *map(type, one.layers), *switches)
        if kind not in kinds:
            with quiet(), told(f"{source}: peft {peft_version()} cannot merge its adapter ({form}), so it has no T"):
                kinds[kind] = {one.parameter: 0.0} if one.parameter and one.factors else _tried(one)
        yield from ((one, leaf, formed) for leaf, formed in kinds[kind].items())


def _tried(layers: Layers) -> dict[str, float]:
    """The parameters that merging random adapters into random weights moves, with the share of entries as above."""
    shapes = {name: value.shape for name, value in layers.module.named_parameters(recurse=False)}
    steps = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
        torch.manual_seed(0)  # the same adapter twice
        after = layers.merged(before, shaken=True)
        steps.append({name: after[name] - before[name] for name in shapes})
    one, other = steps
    return {
        name: 0.0 if torch.allclose(one[name], other[name]) else float((one[name] != 0).double().mean())
        for name in shapes
        if bool(one[name].any())
    }


@contextmanager
def quiet() -> Iterator[None]:
    """peft's warnings are for training, and its random starts leave the caller's generator as it was."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def told(what: str) -> Iterator[None]:
    """Whatever peft raises, in one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        said = f"it misses {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"{what}: {said[:_TOLD] or type(error).__name__}") from error
