"""What this project uses of transformers beyond its documented interface, all in one place.

A name is imported when it is first asked for. Where one has moved, look for its new home in the release notes of
transformers, change its line here, and run the tests of tests/tv/checkpoints and tests/tv/architecture.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tv.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: The versions whose private names these are.
KNOWN = "5.23"

_CONVERSION, _LOADING = "transformers.conversion_mapping", "transformers.core_model_loading"
_GGUF = "transformers.modeling_gguf_pytorch_utils"
_GGUF_CONVERSION = "transformers.integrations.gguf"
#: Name → its module. Only those of loading map a stored name to its parameter: there is no public way.
_HOMES = {
    "CallbackHandler": "transformers.trainer_callback",  # a Trainer's callbacks, in their order
    "get_model_conversion_mapping": _CONVERSION,  # the renamings and converters of one model's checkpoints
    "revert_weight_conversion": _LOADING,  # a model's tensors by name → as its files hold them
    "rename_source_key": _LOADING,  # a stored name → the parameter, by those
    "WeightRenaming": _LOADING,  # another name for one tensor
    "WeightConverter": _LOADING,  # several tensors into one, or one into several
    "MergeModulelist": _LOADING,  # the step of a converter that stacks experts
    "Concatenate": _LOADING,  # the step that joins tensors along a dimension
    "TENSOR_PROCESSORS": _GGUF,  # architecture → how its GGUF tensors are turned
    "TensorProcessor": _GGUF,  # the same for all others
    "get_gguf_hf_weights_map": _GGUF,  # name in the file → parameter
    # of the architectures that newer versions read otherwise
    "GgufHeader": f"{_GGUF_CONVERSION}.reader",  # a GGUF file's tensors by name
    "load_gguf_state_dict": f"{_GGUF_CONVERSION}.reader",  # the same, to be read one by one
    "get_gguf_conversion_mapping": f"{_GGUF_CONVERSION}.utils",  # its renamings and converters
    "get_gguf_plan": f"{_GGUF_CONVERSION}.utils",  # which of its tensors are quantised
    "add_gguf_load_ops": f"{_GGUF_CONVERSION}.utils",  # those converters with the step that dequantises
}
#: Where the usual `_apply_gate` of experts is defined. Once it moves, experts go by name alone: update it.
USUAL_GATE = "transformers.integrations.moe"

#: The attributes by which a model says that it runs with adapters.
ADAPTER_MARKS = ("peft_config", "_hf_peft_config_loaded")


def __getattr__(name: str) -> Any:
    """One of the names above. Raises InputError where this version of transformers no longer has it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except (ImportError, AttributeError) as error:
        import transformers

        raise InputError(
            f"transformers {transformers.__version__} has no {_HOMES[name]}.{name}; known to work: {KNOWN}; "
            f"install one of these: pip install 'transformers=={KNOWN}.*'"
        ) from error


def converts_gguf(architecture: str) -> bool:
    """Whether a GGUF file of this architecture is loaded by converters, as newer versions do for some."""
    try:
        supported = importlib.import_module(f"{_GGUF_CONVERSION}.utils").is_gguf_arch_supported
    except (ImportError, AttributeError):
        return False
    return bool(supported(architecture))


def classes_registered() -> bool:
    """Whether this process has added classes of its own to those that transformers finds by configuration."""
    auto = "transformers.models.auto"
    mappings = [(f"{auto}.configuration_auto", "CONFIG_MAPPING")]
    kinds = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    mappings += [(f"{auto}.modeling_auto", f"MODEL_FOR_{kind}_MAPPING") for kind in kinds]
    found = (getattr(sys.modules.get(module), name, None) for module, name in mappings)
    return any(getattr(mapping, "_extra_content", None) for mapping in found)


def undivided_classes(model: PreTrainedModel) -> list[str]:
    """The classes of modules that must lie on one device; none where the attribute has moved."""
    return list(getattr(model, "_no_split_modules", None) or ())


def ignored_keys(model: PreTrainedModel) -> tuple[str, ...]:
    """Patterns of stored tensors that the model does not use; none where the attribute has moved."""
    return tuple(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())


def quarter_turn(model: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
    """The quarter turn of every pair of dimensions in its rotary embedding; None where the function has moved."""
    function: Callable[[Tensor], Tensor] | None = getattr(
        importlib.import_module(type(model).__module__), "rotate_half", None
    )
    return function


def make_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Make the buffers of a model on the meta device as its class initialises them; its parameters stay there."""
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # so that initialising leaves them alone
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device=device)
    model.initialize_weights()


def kept_in_float32(model: PreTrainedModel) -> Callable[[str], bool]:
    """Whether a weight of this name is loaded as float32, whatever the model's dtype; none where this has moved."""
    found: list[str] = []
    if model.dtype in (torch.float16, torch.bfloat16):
        found += getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    if model.dtype == torch.float16:
        found += getattr(model, "_keep_in_fp32_modules", None) or ()
    patterns = [re.compile(part.replace("*", ".*")) for part in found]
    return lambda name: any(pattern.search(name) for pattern in patterns)


def grows(layer: object) -> bool:
    """Whether a layer of a cache only gets longer as it is read on, whole or as a window of the last tokens."""
    kinds = importlib.import_module("transformers.cache_utils")
    return type(layer) in (kinds.DynamicLayer, kinds.DynamicSlidingWindowLayer)
