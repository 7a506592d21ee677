"""The rule by which models write: the argmax for all, or each by the generation settings of its own checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

from transformers import GenerationConfig, PreTrainedModel

from tv.errors import InputError

#: greedy: the argmax of the raw logits at every step; checkpoint: the checkpoint's own generation settings.
Decoding: TypeAlias = Literal["greedy", "checkpoint"]
#: How many tokens are written, and what `generate` returns, is up to its caller.
_CALLERS = ("max_length", "max_new_tokens", "num_return_sequences", "return_dict_in_generate")
#: Settings that have no say in which token comes next: ids, caches, what is returned, where the file comes from.
_SILENT = (*_CALLERS, "bos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache", "disable_compile")
_SILENT_STARTS = ("_", "output_", "cache_", "max_cache", "compile", "transformers_")


def require_decoding(decoding: str) -> None:
    """Raise InputError for a rule that does not exist."""
    if decoding not in get_args(Decoding):
        raise InputError(f"decoding {decoding!r}: use {' or '.join(get_args(Decoding))}")


def stated_settings(model: PreTrainedModel) -> dict[str, Any]:
    """What the checkpoint's generation settings state about the choice of tokens, by name."""
    stated = model.generation_config.to_dict() if model.generation_config is not None else {}
    return {
        name: value
        for name, value in sorted(stated.items())
        if value is not None and name not in _SILENT and not name.startswith(_SILENT_STARTS)
    }


def decoding_note(model: PreTrainedModel, decoding: Decoding) -> str:
    """One line: by what rule this model writes, and which of its settings this uses or leaves out."""
    settings = {name: value for name, value in stated_settings(model).items() if name != "eos_token_id"}
    if decoding == "checkpoint":
        return f"decodes by its checkpoint's settings: {_listed(settings) or 'none, so greedily'}"
    without = f"; its checkpoint's settings are left out: {_listed(settings)}" if settings else ""
    return f"decodes greedily, the argmax of the logits{without}"


@contextmanager
def decoded_by(model: PreTrainedModel, ends: Collection[int], decoding: Decoding) -> Iterator[None]:
    """`model.generate` by this rule, up to one of the tokens `ends`, and after that by its settings as they were.

    `generate` fills what its caller leaves open from the model's settings, so that they have to be others meanwhile.
    """
    before = model.generation_config
    kept = copy.deepcopy(before) if before is not None and decoding == "checkpoint" else GenerationConfig()
    kept.update(**dict.fromkeys(_CALLERS), eos_token_id=sorted(ends) or None)
    model.generation_config = kept
    try:
        yield
    finally:
        model.generation_config = before


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
