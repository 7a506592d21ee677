"""A model in training, looked at and left as it was: random numbers, modes, gradients and weights."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tv.checkpoints.adapters.live import as_model
from tv.errors import InputError
from tv.runtime.common_rows import common_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def core_of(model: Any) -> PreTrainedModel:
    """The transformers model in whatever runs it in training: torch.compile, DDP, peft.

    Raises InputError where no process holds the parameters whole.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            break
        model = inner
    sharded = any("FullyShardedDataParallel" in type(module).__name__ for module in model.modules())
    if sharded or any(hasattr(one, "ds_id") or type(one).__name__ == "DTensor" for one in model.parameters()):
        raise InputError(
            "TrainingProbe: the model's parameters are spread over processes (FSDP, DeepSpeed ZeRO 3), and it reads "
            "whole ones; train with DDP, or measure the saved checkpoints with `tv trajectory`"
        )
    core: PreTrainedModel = as_model(model)
    return core


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode, in its own precision, without gradients; afterwards all is as before.

    What is put back: the random states of Python, NumPy and torch (CPU and every GPU), the mode of every module, and
    which parameters want gradients. A forward that was compiled, or put under autocast by accelerate, is set aside.
    """
    modes = {module: module.training for module in model.modules()}
    wants = {parameter: parameter.requires_grad for parameter in model.parameters()}
    python, legacy = random.getstate(), np.random.get_state()
    devices = {parameter.device for parameter in model.parameters()}
    kinds = {device.type for device in devices} - {"meta"}
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(range(torch.cuda.device_count())))
            stack.enter_context(torch.no_grad())
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            for module in modes:
                stack.enter_context(_plain(module))
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, want in wants.items():
            parameter.requires_grad_(want)
        random.setstate(python)
        np.random.set_state(legacy)


@contextmanager
def _plain(module: nn.Module) -> Iterator[None]:
    """A module's own forward in place of the one that `Module.compile` or accelerate put there."""
    own = vars(module)
    kept: dict[str, Any] = {name: own[name] for name in ("forward", "_compiled_call_impl") if name in own}
    if "_original_forward" in own and "forward" in kept:  # accelerate's mixed precision brings an autocast of its own
        own["forward"] = own["_original_forward"]
    if kept.get("_compiled_call_impl") is not None:
        own["_compiled_call_impl"] = None
    try:
        yield
    finally:
        own.update(kept)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The base in the model: adapters of peft are switched off, and those that were on come back.

    Inside `undisturbed`, because switching changes which parameters want gradients.
    """
    switched = [module for module in adapter_layers(model) if not module.disable_adapters]
    try:
        for module in switched:
            module.enable_adapters(False)
        yield
    finally:
        for module in switched:
            module.enable_adapters(True)


def adapter_layers(model: nn.Module) -> list[Any]:
    """Every layer that peft put into a model."""
    if sys.modules.get("peft") is None:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return [module for module in model.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


@contextmanager
def replaced(parameters: Mapping[str, Tensor], value: Callable[[str], Tensor], scratch: Path) -> Iterator[None]:
    """`value(name)` in every one of these parameters, for a while: what was there waits on disk, a tensor a file.

    No second copy of the model is held, and every bit comes back.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    waiting: dict[str, Path] = {}
    try:
        for i, (name, parameter) in enumerate(parameters.items()):
            new = value(name)
            save_file({"value": parameter.detach().contiguous()}, scratch / f"{i}.safetensors")
            waiting[name] = scratch / f"{i}.safetensors"
            there, here = common_rows(parameter.data, new)
            there.copy_(here)
        yield
    finally:
        for name, path in waiting.items():
            parameters[name].data.copy_(load_file(path)["value"])
            path.unlink()
        with suppress(OSError):
            scratch.rmdir()
