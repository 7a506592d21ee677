"""A model in memory that runs with adapters of peft: its base without them, and what they move.

The model itself stays as it is. What is taken of it shares its weights, and only copies of its layers are merged.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tv.checkpoints.adapters.changes import AdapterTensors, Change, Move
from tv.checkpoints.adapters.kinds import form_of, kind_of, reads_base, require_mergeable, trained_as
from tv.checkpoints.adapters.layers import Layers, layers_of, moved_leaves
from tv.checkpoints.adapters.through_peft import Merge, noise_of
from tv.checkpoints.adapters.ties import settled, tied_names
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.noise import coarsest
from tv.checkpoints.parameters import DTYPES
from tv.errors import CheckpointError
from tv.runtime.live_models import is_live
from tv.runtime.transformers_private import ADAPTER_MARKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLED = 1024  # entries at either end


def as_model(source: Any) -> Any:
    """The model in a PeftModel, with its adapters; any other source unchanged.

    Raises CheckpointError for an adapter that has no T, such as prompt tuning.
    """
    if sys.modules.get("peft") is None:
        return source
    from peft import PeftMixedModel, PeftModel

    if not isinstance(source, (PeftModel, PeftMixedModel)):
        return source
    for config in source.peft_config.values():
        settings = config.to_dict()
        if form_of(settings) != "LoRA":
            require_mergeable(_name(source), form_of(settings), settings)
    return source.base_model.model


def holds_adapter(model: nn.Module) -> bool:
    """Whether peft put layers into a model, active or not."""
    return bool(_wrapped(model))


def runs_adapter(model: nn.Module) -> bool:
    """Whether a model runs with an adapter: it holds one that is active."""
    return holds_adapter(model) and (bool(layers_of(model, read=True)) or any(_trained(model)))


def without_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its adapters switched off, as a plain model that shares its weights."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in _wrapped(model).values():
        own = module.get_base_layer() if hasattr(module, "get_base_layer") else module.original_module
        memo[id(module)] = copy.deepcopy(own, memo)
    plain = copy.deepcopy(model, memo)
    for mark in ADAPTER_MARKS:
        vars(plain).pop(mark, None)
    return plain.eval()


def base_beside(base: Any, *tuned: Any) -> Any:
    """A base as it stands beside tuned sides: without its adapters where a tuned side is the same model with them.

    Raises CheckpointError where the model without them is not its base.
    """
    model = as_model(base)
    same = is_live(model) and any(as_model(other) is model for other in tuned)
    if not same or not holds_adapter(model):
        return model
    _require_base(model)
    return without_adapter(model)


def adapted(model: PreTrainedModel, own: Checkpoint, base: Checkpoint | None) -> AdapterTensors | None:
    """The parameters of a model that runs with adapters: over `base` where it holds the same, otherwise over its own.

    `own` is the model without them. None where no adapter is active and no base is asked for. Raises CheckpointError
    in one line: adapters that are merged already, not active or without T, or a base that is not in memory.
    """
    layers, whole = layers_of(model, read=True), dict(_trained(model))
    if any(layer.merged for one in layers for layer in one.layers):
        raise CheckpointError(f"{own.source}: its adapter is merged into its weights; call unmerge_adapter() first")
    if not layers and not whole:
        if base is None:
            return None
        raise CheckpointError(f"{own.source}: has adapters, and none is active; activate one (set_adapter) first")
    if base is None:
        _require_base(model)
    under = base if base is not None and _same(base, own) else own
    configs = _configs(model)
    form = " and ".join(dict.fromkeys(map(form_of, configs))) or "of a kind it does not name"
    tied = tied_names(without_adapter(model), under)
    changes = _changes(form, under, layers, tied, configs)
    moves = {name: Move(whole.get(name), changes.get(name)) for name in dict.fromkeys([*whole, *changes])}
    over, moves, notes = settled(own.source, under, moves, tied)
    trained = "; ".join(dict.fromkeys(trained_as(form_of(one), one) for one in configs)) or form
    said = f"{own.source}: runs with an adapter ({trained}), which changes {len(moves)} of {len(over.names)} tensors"
    return AdapterTensors(over, moves, (said, *notes))


@dataclass(frozen=True)
class _Held:
    """A parameter of a trained copy in memory."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> str:
        return DTYPES.get(self.value.dtype, str(self.value.dtype))

    def load(self, index: int = -1) -> Float[Tensor, "..."]:
        return (self.value if index < 0 else self.value[index]).cpu()

    def sample(self) -> bytes:
        return _ends(self.value).numpy().tobytes()


def _changes(
    form: str, base: Checkpoint, layers: list[Layers], tied: Mapping[str, str], configs: list[dict[str, Any]]
) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for one, leaf, formed in moved_leaves(base.source, form, layers):
        parameter = f"{one.path}.{leaf}"
        own = {id(value) for value in one.module.parameters()}
        tensors = [value for layer in one.layers for value in layer.parameters() if id(value) not in own]
        dtype = coarsest(DTYPES.get(value.dtype, "F32") for value in tensors)
        from_base = any(reads_base(config) or config.get("use_dora") for config in configs)
        noise = noise_of(dtype, base.info(tied.get(parameter, parameter)).dtype, formed, from_base)
        digest = b"".join(_ends(value).numpy().tobytes() for value in tensors)
        changes[parameter] = Merge(base.source, one, leaf, {}, dtype, noise, digest)
    return changes


def _trained(model: nn.Module) -> Iterator[tuple[str, _Held]]:
    """The parameters of trained copies (`modules_to_save`) that are active, by their names in the plain model."""
    if sys.modules.get("peft") is None:
        return
    from peft.utils import ModulesToSaveWrapper

    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and not module.disable_adapters and module.active_adapters:
            trained = module.modules_to_save[module.active_adapters[0]]
            yield from ((f"{path}.{name}", _Held(value.detach())) for name, value in trained.named_parameters())


def _wrapped(model: nn.Module) -> dict[str, Any]:
    """The modules that peft put in the place of the model's own, by path, without what is inside them."""
    if sys.modules.get("peft") is None:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if not inside and isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            found[path] = module
    return found


def _require_base(model: PreTrainedModel) -> None:
    """Raise CheckpointError where a model without its adapters is not the base that they were made for."""
    for config in _configs(model):
        why = None
        if config.get("bias", "none") != "none":
            why = "trains biases in place"
        elif kind_of(config) == "LORA" and (reads_base(config) or config.get("init_lora_weights") == "lora_ga"):
            why = "changed the base's weights when it was made"
        if why is not None:
            raise CheckpointError(
                f"{_name(model)}: its adapter ({form_of(config)}) {why}, so its base is not in memory; pass the base "
                "too"
            )


def _configs(model: PreTrainedModel) -> list[dict[str, Any]]:
    return [config.to_dict() for config in getattr(model, "peft_config", {}).values()]


def _same(base: Checkpoint, own: Checkpoint) -> bool:
    """Whether two checkpoints hold the same values, by the ends of every parameter."""
    return set(base.names) == set(own.names) and all(
        base.info(name).shape == own.info(name).shape and torch.equal(_ends(base.read(name)), _ends(own.read(name)))
        for name in own.names
    )


def _ends(value: Tensor) -> Tensor:
    flat = value.detach().flatten()
    return torch.cat([flat[:_SAMPLED], flat[-_SAMPLED:]]).float().cpu()


def _name(model: Any) -> str:
    return str(model.config.name_or_path or type(model).__name__)
