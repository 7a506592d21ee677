"""Adapters whose T peft computes: its own `merge`, on one module at a time, in float64.

The layers stand in a model without weights. For a parameter, its module's real weights are put into a copy of the
layer, peft merges the copy, and T = merged − base. Kinds that read the base's weights when peft builds them are
built over those weights, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tv.checkpoints.adapters.kinds import peft_version, reads_base
from tv.checkpoints.adapters.layers import Layers, layers_of, quiet, told
from tv.checkpoints.noise import ROUNDING, Noise
from tv.checkpoints.tensors import Stored
from tv.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The largest relative error of a norm that is computed and stored in a dtype, over rows of any model (measured).
_UNIT = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-22, "F64": 2.0**-51}


@dataclass(frozen=True)
class Merge:
    """The change that layers of peft make to one parameter of their module."""

    source: str
    layers: Layers
    leaf: str
    others: Mapping[str, Callable[[], Tensor]]  # the module's other parameters
    dtype: str
    noise: Noise
    digest: bytes

    def step(self, weight: Callable[[], Tensor], expert: int = -1) -> Float[Tensor, "..."]:
        factors = self.layers.factors
        if factors is not None:
            left, right, scaling = factors
            picked = slice(None) if expert < 0 else expert
            return (scaling * (left[picked] @ right[picked])).float()
        before = weight().to(torch.float64, copy=True)
        if self.layers.read:
            weights = {name: value.detach() for name, value in self.layers.module.named_parameters(recurse=False)}
        else:
            weights = {self.leaf: before} | {leaf: read() for leaf, read in self.others.items()}
        with told(f"{self.source}: {self.layers.path}: peft {peft_version()} cannot merge it"):
            delta = (self.layers.merged(weights)[self.leaf] - before).float()
        return delta if expert < 0 else delta[expert].clone()

    def sample(self) -> bytes:
        return self.digest


def injected(
    directory: Path, form: str, model: PreTrainedModel, parts: Sequence[Stored], read: Callable[[str], Tensor]
) -> list[Layers]:
    """An adapter's layers in `model`, a skeleton, with the tensors of its file.

    Raises CheckpointError where peft cannot build it, or the file's tensors are not its.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    with quiet(), told(f"{directory}: peft {peft_version()} cannot load its adapter ({form})"):
        config = PeftConfig.from_pretrained(str(directory))
        config.inference_mode, config.modules_to_save = True, None  # those are read from the file, each on demand
        for setting, value in {"bias": "none", "progressbar": False}.items():
            if hasattr(config, setting):
                setattr(config, setting, value)
        reads = reads_base(config.to_dict())
        for name, parameter in list(model.named_parameters()):
            value = read(name).float() if reads else torch.zeros(()).expand(parameter.shape)  # which takes no memory
            _set(model, parameter, value.clone() if reads else value)
        tuned = PeftModel(model, config)
        ours = get_peft_model_state_dict(tuned, save_embedding_layers=False)
        for value in ours.values():
            if value.is_floating_point():
                value.fill_(torch.nan)
        weights = {stored.name: stored.load() for stored in parts}
        unexpected = set_peft_model_state_dict(tuned, weights).unexpected_keys
        held = get_peft_model_state_dict(tuned, save_embedding_layers=False)
    unexpected = [name for name in unexpected if not _is_copy(name, weights)]
    if unexpected:
        raise CheckpointError(
            f"{directory}: tensor {unexpected[0]!r} is neither a parameter of the base nor part of the adapter that "
            "adapter_config.json describes; the two do not belong together, or the base is another"
        )
    missing = next((name for name, value in held.items() if not bool(torch.isfinite(value).all())), None)
    if missing is not None:
        raise CheckpointError(
            f"{directory}: tensor {missing!r} is missing, or holds NaN or Inf; save the adapter again"
        )
    return layers_of(model, reads)


def noise_of(dtype: str, base_dtype: str, formed: float, from_base: bool) -> Noise:
    """The noise of T where an adapter's tensors are stored as `dtype`, and this share of T is formed from the weight.

    There, rounding one of the adapter's tensors moves the weight by as much. And what was computed from the base's
    weights when training began was rounded as they are.
    """
    dtypes = (dtype, base_dtype) if from_base else (dtype,)
    unit = max(_UNIT.get(one, ROUNDING.get(one, 0.0)) for one in dtypes)
    share = formed or float(from_base)
    return Noise(of_weight=unit * share**0.5, of_delta=2**0.5 * ROUNDING.get(dtype, 0.0))


def digest_of(config: Mapping[str, Any], parts: Iterable[Stored]) -> bytes:
    """A hash of what an adapter consists of."""
    digest = sha256(repr(sorted(config.items())).encode())
    for stored in parts:
        digest.update(stored.name.encode() + stored.sample())
    return digest.digest()


def _is_copy(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is another's copy, as peft saves what tied modules share."""
    return name in weights and any(torch.equal(weights[name], of) for other, of in weights.items() if other != name)


def _set(model: nn.Module, parameter: nn.Parameter, value: Tensor) -> None:
    """Put a value in the place of a parameter, wherever it stands in the model."""
    held = nn.Parameter(value, requires_grad=False)
    for module in model.modules():
        for name, own in module.named_parameters(recurse=False, remove_duplicate=False):
            if own is parameter:
                module.register_parameter(name, held)
