"""A checkpoint as a live model with its tokenizer."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tv.architecture.classes import built, loader_of
from tv.architecture.values import values_of
from tv.checkpoints.adapters.directory import adapter_base
from tv.checkpoints.adapters.live import as_model, holds_adapter, runs_adapter, without_adapter
from tv.checkpoints.casting import cast
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.gguf import gguf_file, load_gguf
from tv.checkpoints.live_proof import as_read, with_own_code
from tv.checkpoints.location import HubId, for_transformers, kind_of, locate, place_of
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.quickened import quickened
from tv.checkpoints.ties import is_tied, untie
from tv.checkpoints.transformers_names import ModelNames
from tv.checkpoints.vector import TuningVector
from tv.errors import CheckpointError, first_line
from tv.runtime.compute import require_dtype
from tv.runtime.memory import RELIEF, require_memory
from tv.runtime.transformers_private import undivided_classes

LiveSource: TypeAlias = str | Path | PreTrainedModel | TuningVector


def load_model(
    source: LiveSource,
    *,
    base: LiveSource | None = None,
    opened: Checkpoint | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, from whatever `tv.open_checkpoint` opens.

    A live model is used as it is, and of one that runs with adapters a plain copy that computes the same. An adapter
    or a tuning vector moves a copy of `base` (without one, of the base that it names). `opened` is the source over
    `base` as `tv.open_checkpoint` opened it, where that is at hand. `dtype` is float32, bfloat16 or
    float16; `device` is one of torch's, or "auto": spread over all GPUs by accelerate. Weights come from safetensors
    and GGUF alone. Raises CheckpointError where it cannot be loaded, or does not fit its devices, and InputError for
    another dtype.
    """
    source = as_model(source)
    if isinstance(source, PreTrainedModel):
        if holds_adapter(source):
            under = without_adapter(source)
            return _moved(open_checkpoint(source, base=under), under, under.dtype) if runs_adapter(source) else under
        return source.eval()
    return _placed(_on_cpu(source, base, getattr(torch, require_dtype(dtype)), trust_remote_code, opened), device)


def _on_cpu(
    source: str | Path | TuningVector,
    base: LiveSource | None,
    dtype: torch.dtype,
    trust_remote_code: bool,
    opened: Checkpoint | None = None,
) -> PreTrainedModel:
    if isinstance(source, TuningVector):
        return _moved(opened or open_checkpoint(source, base=base), base, dtype)
    path = locate(source)
    if trust_remote_code and path.is_dir() and kind_of(path) == "model":
        return with_own_code(_load(place_of(source), dtype, trust_remote_code=True), path)
    kind = kind_of(path)
    if kind in ("adapter", "vector"):
        return _moved(opened or open_checkpoint(source, base=base), base, dtype)
    checkpoint = opened or open_checkpoint(path)
    if kind == "gguf":
        return as_read(load_gguf(gguf_file(path), dtype).eval(), checkpoint)
    return as_read(_load(path, dtype) if checkpoint.native else _from_here(checkpoint, dtype), checkpoint)


#: The files without any of which a directory has no tokenizer.
_TOKENIZERS = ("tokenizer*", "vocab.*", "*.model", "tekken.json")


def load_tokenizer(source: LiveSource) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint: of an adapter without one, its base's. Raises CheckpointError without any."""
    if isinstance(source, TuningVector):
        raise CheckpointError("a tuning vector has no tokenizer; pass its base")
    source = as_model(source)
    place = place_of(source.config.name_or_path if isinstance(source, PreTrainedModel) else source)
    options: dict[str, str] = {}
    if isinstance(place, Path):
        kind = kind_of(place)
        if kind == "vector":
            raise CheckpointError(f"{source}: a tuning vector has no tokenizer; pass its base")
        if kind == "adapter" and not (place / "tokenizer_config.json").is_file():
            place = place_of(*adapter_base(place))
        elif kind == "gguf":
            file = gguf_file(place)
            place, options = file.parent, {"gguf_file": file.name}
    name, revision = for_transformers(place)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(place, Path) and not any(any(place.glob(pattern)) for pattern in _TOKENIZERS):
            raise CheckpointError(
                f"{name}: no tokenizer lies beside the weights; copy tokenizer.json and tokenizer_config.json of the "
                "model that it was trained from into this directory"
            ) from error
        raise CheckpointError(
            f"{name or 'live model'}: no tokenizer can be loaded from there: {first_line(error)}"
        ) from error


def _placed(model: PreTrainedModel, device: str) -> PreTrainedModel:
    try:
        if device != "auto":
            return quickened(model.to(device))
        if not torch.cuda.is_available():
            return quickened(model)
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory

        whole = undivided_classes(model)
        memory = get_balanced_memory(model, no_split_module_classes=whole)
        places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
        if elsewhere := {str(place) for place in places.values()} & {"cpu", "disk"}:
            raise CheckpointError(
                f"{model.config.name_or_path}: the GPUs here cannot hold it, and {' and '.join(sorted(elsewhere))} "
                "would have to help; use a smaller dtype, more GPUs or the CPU"
            )
        return dispatch_model(model, places)
    except ImportError:
        raise CheckpointError("device 'auto': accelerate is not installed; install tuning-probes[accelerate]") from None
    except (RuntimeError, AssertionError) as error:  # no such device, torch built without it
        require_memory(error, f"device {device!r}: {model.config.name_or_path}", RELIEF)
        raise CheckpointError(f"device {device!r}: {model.config.name_or_path}: {first_line(error)}") from error


def _load(place: Path | HubId, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    name, revision = for_transformers(place)
    try:
        loader = AutoModelForCausalLM
        if not trust_remote_code:
            loader = loader_of(AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False))
        model = loader.from_pretrained(
            name, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except (OSError, MemoryError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        require_memory(error, f"{name}: loading it", RELIEF)
        raise CheckpointError(f"{name}: cannot be loaded as a causal language model: {first_line(error)}") from error
    return model.eval()


def _moved(checkpoint: Checkpoint, base: LiveSource | None, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of the base with the parameters that T moves replaced."""
    assert checkpoint.base is not None
    under = base if base is not None else checkpoint.base.source
    model = (
        cast(copy.deepcopy(under), dtype) if isinstance(under, PreTrainedModel) else _on_cpu(under, None, dtype, False)
    )
    if is_tied(model) and not checkpoint.architecture.tied:
        untie(model)
    if checkpoint.architecture.vocab_size != checkpoint.base.architecture.vocab_size:
        model.resize_token_embeddings(checkpoint.architecture.vocab_size, mean_resizing=False)
    return _filled(model, checkpoint, checkpoint.moved)


def _from_here(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The model of files that transformers does not load as they are, with the tensors as the checkpoint reads them."""
    model = built(copy.deepcopy(checkpoint.config), dtype=dtype)
    model.config.name_or_path = str(checkpoint.path)
    with suppress(OSError, ValueError):  # a checkpoint may have none
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    names = ModelNames(model)
    model.load_state_dict({names.of(key)[0]: buffer for key, buffer in checkpoint.buffers.items()}, strict=False)
    return _filled(model, checkpoint, checkpoint.values)


def _filled(model: PreTrainedModel, checkpoint: Checkpoint, names: tuple[str, ...]) -> PreTrainedModel:
    values = values_of(model)
    with torch.no_grad():
        for name in names:
            values[name].copy_(checkpoint.tensor(name))
    return model.eval()
