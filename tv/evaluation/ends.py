"""Where answers end: at the end-of-text tokens of all models that are compared, so that one rule serves all of them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tv.checkpoints.adapters.live import as_model
from tv.checkpoints.live import LiveSource
from tv.checkpoints.location import kind_of, locate
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.vector import TuningVector
from tv.evaluation.decoding import Decoding
from tv.evaluation.greedy import stated_ends

Ends = Mapping[str, set[int]]  # by model
Words = Mapping[str, PreTrainedTokenizerBase]  # by model: the tokenizer that serves it


def own_ends(source: LiveSource, tokenizer: PreTrainedTokenizerBase, base: LiveSource | None = None) -> set[int]:
    """The end-of-text ids of a model's generation settings and of the tokenizer that serves it; nothing is loaded.

    A checkpoint without generation settings has those of its configuration, an adapter or a vector those of its base.
    """
    return stated_ends(_settings(source, base), tokenizer)


def ends_by(decoding: Decoding, own: Ends, words: Words) -> tuple[dict[str, set[int]], list[str]]:
    """Which ids end each model's answers, and a note where the models' own differ.

    Decoding "greedy" ends every model at the tokens of all; with "checkpoint" each keeps to its own. Another model's
    token counts by its name, which may have another id here, and by its id where neither tokenizer names it.
    """
    named = {name: {_named(i, words[name]) for i in ids} for name, ids in own.items()}
    note = [_note(decoding, own, words)] if len({frozenset(tokens) for tokens in named.values()}) > 1 else []
    if decoding == "checkpoint":
        return dict(own), note
    tokens = {token for own_tokens in named.values() for token in own_tokens}
    return {name: own[name] | _ids(tokens, words[name]) for name in own}, note


def _note(decoding: Decoding, own: Ends, words: Words) -> str:
    listed = "; ".join(f"{name}: {_listed(ids, words[name]) or 'none'}" for name, ids in own.items())
    rule = "each of them ends every model's text" if decoding == "greedy" else "each model ends with its own"
    return f"the models' end-of-text tokens differ ({listed}); {rule}"


def _listed(ids: set[int], tokenizer: PreTrainedTokenizerBase) -> str:
    named = [(i, _named(i, tokenizer)) for i in sorted(ids)]
    return ", ".join(f"{i} {token!r}" if isinstance(token, str) else str(i) for i, token in named)


def _named(i: int, tokenizer: PreTrainedTokenizerBase) -> str | int:
    """The token of an id; the id itself where the tokenizer has none."""
    token = tokenizer.convert_ids_to_tokens(i)
    return i if token is None else str(token)


def _ids(tokens: set[str | int], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The ids that what `_named` gives has here, as far as it is here."""
    vocabulary = tokenizer.get_vocab()
    unnamed = {i for i in tokens if isinstance(i, int) and tokenizer.convert_ids_to_tokens(i) is None}
    return unnamed | {vocabulary[token] for token in tokens if isinstance(token, str) and token in vocabulary}


def _settings(source: LiveSource, base: LiveSource | None) -> GenerationConfig | PretrainedConfig:
    """The generation settings with which `load_model` loads a source."""
    source = as_model(source)
    if isinstance(source, PreTrainedModel):
        return source.generation_config or source.config
    place = None if isinstance(source, TuningVector) else locate(source)
    if place is None or kind_of(place) in ("adapter", "vector"):
        checkpoint = open_checkpoint(source, base=base)
        assert checkpoint.base is not None
        return _settings(base if base is not None else checkpoint.base.source, None)
    if kind_of(place) != "gguf":
        with suppress(OSError, ValueError):  # a checkpoint may have none
            return GenerationConfig.from_pretrained(place)
    return GenerationConfig.from_model_config(open_checkpoint(place).config)
