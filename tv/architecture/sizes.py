"""The sizes of a model, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


UNBOUNDED = 2**31 - 1
#: Sizes of layers with global attention, which transformers before 5.18 keeps beside those of the others.
_GLOBAL = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}


#: What configurations call the number of experts that a token is routed to.
_ACTIVE = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")


@dataclass(frozen=True)
class Sizes:
    """Sizes that hold for every layer; 0 where the configuration gives none."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    context: int

    def heads_of(self, name: str) -> int:
        """The heads that the matrix of this name is cut into; 0 = none."""
        return {"q": self.n_heads, "o": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}.get(name, 0)


def sizes_of(config: PretrainedConfig) -> Sizes:
    """The sizes of the text model that `config` describes."""
    text = config.get_text_config()
    d_model, n_heads = _size(text, "hidden_size"), _size(text, "num_attention_heads")
    return Sizes(
        n_layers=_size(text, "num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=_size(text, "num_key_value_heads", n_heads),
        d_head=_size(text, "head_dim", d_model // n_heads if n_heads else 0),
        context=_size(text, "max_position_embeddings", UNBOUNDED),
    )


def experts_per_token(config: PretrainedConfig) -> int:
    """How many experts of a layer a token is routed to; 0 where the configuration does not say."""
    text = config.get_text_config()
    return next((size for name in _ACTIVE if (size := _size(text, name))), 0)


def _size(config: PretrainedConfig, name: str, default: int = 0) -> int:
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers raises it for a size that differs from layer to layer
        return 0
    if getattr(config, _GLOBAL.get(name, ""), None) not in (None, value):
        return 0
    return value if isinstance(value, int) and value else default
