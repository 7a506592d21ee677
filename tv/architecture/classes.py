"""Which class of transformers a configuration's model is loaded with."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from tv.errors import ArchitectureError

#: The classes of language models, text models first; the others read pictures, sounds or both beside their text.
_AUTO: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)


def loader_of(config: PretrainedConfig) -> Any:
    """The class whose `from_pretrained` loads the model.

    It is the one that the checkpoint names, where that is a language model: one saved with its vision tower keeps it.
    Otherwise it is the text model of its type, or where there is none what reads text beside other things.

    Args:
        config: Of a checkpoint.

    Returns:
        A model class, or one of transformers' Auto classes.

    Raises:
        ArchitectureError: transformers has no language model of this type.

    Examples:
        >>> from transformers import LlamaConfig
        >>> loader_of(LlamaConfig(architectures=["LlamaForCausalLM"])).__name__
        'LlamaForCausalLM'
    """
    named: Any = getattr(transformers, (config.architectures or [""])[0] or "", None)
    known = [auto for auto in _AUTO if type(config) in auto._model_mapping]
    for auto in known:
        mapped = auto._model_mapping[type(config)]
        for cls in mapped if isinstance(mapped, tuple | list) else (mapped,):
            if cls is named and cls.config_class is type(config):
                return cls
    if known:
        return known[0]
    if named is not None and getattr(named, "config_class", None) is type(config):
        return named  # of a type that transformers lists nowhere
    raise ArchitectureError(
        f"model type {config.model_type!r}: transformers has no causal language model of it; name one that has"
    )


def built(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """A new model of this configuration, of the class that `loader_of` gives. Raises ArchitectureError without one."""
    loader = loader_of(config)
    build = loader.from_config if loader in _AUTO else loader._from_config
    model: PreTrainedModel = build(config, **options)
    return model
