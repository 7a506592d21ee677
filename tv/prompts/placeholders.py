"""Tokens that stand for pictures, videos or sounds: of a text alone a model has nothing to put in their place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tv.errors import PromptError
from tv.prompts.encoding import Encoded
from tv.prompts.template import place

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_FIELD = re.compile("(image|video|audio)_token_(id|index)")


def placeholders_of(config: PretrainedConfig) -> dict[int, str]:
    """What each such token stands for.

    Args:
        config: Of a model. That of a text model names none.

    Returns:
        "image", "video" or "audio", by the token's id.

    Examples:
        >>> from transformers import LlamaConfig, LlavaConfig
        >>> placeholders_of(LlavaConfig(image_token_index=7)), placeholders_of(LlamaConfig())
        ({7: 'image'}, {})
    """
    fields = ((_FIELD.fullmatch(name), value) for name, value in vars(config).items())
    return {value: match[1] for match, value in fields if match and isinstance(value, int)}


def require_text(encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Check that prompts hold text alone.

    Args:
        encoded: Prompts as tokens.
        tokenizer: Theirs.
        config: Of the model that is to read them.

    Raises:
        PromptError: A prompt holds a placeholder; the line names the first.
    """
    known = placeholders_of(config)
    for item in encoded:
        for token in (*item.ids, item.foil_id):
            if token in known:
                raise PromptError(
                    f"{place(item.prompt)}: token {tokenizer.convert_ids_to_tokens(token)!r} (id {token}) stands for "
                    f"{known[token]}, and models are given text alone; take it out of the prompt"
                )
