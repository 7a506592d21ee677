"""A checkpoint as a live model with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tv.errors import CheckpointError, first_line

LiveSource: TypeAlias = str | Path | PreTrainedModel


def load_model(
    source: LiveSource, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model in evaluation mode: a directory, a hub id, or a live model (used as it is).

    Weights come from safetensors alone. Raises CheckpointError where transformers cannot load it.
    """
    if isinstance(source, PreTrainedModel):
        return source.eval()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source}: cannot be loaded as a causal language model: {first_line(error)}") from error
    return model.eval()


def load_tokenizer(source: LiveSource) -> PreTrainedTokenizerBase:
    """The tokenizer beside a checkpoint. Raises CheckpointError where there is none."""
    path = source.config._name_or_path if isinstance(source, PreTrainedModel) else source
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path or 'live model'}: no tokenizer can be loaded from there: {first_line(error)}"
        ) from error
