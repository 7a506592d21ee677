"""Stored tensors that belong to no parameter and that nothing needs: what old versions of transformers saved."""

from __future__ import annotations

import re

from tv.checkpoints.tree import Tree

_LEFT_OVER = re.compile(
    r"(rotary_emb\.inv_freq|masked_bias|\.position_ids|(attn|attention)\.bias|_scale(_inv)?|_zero_point)$"
)


def is_left_over(key: str) -> bool:
    """Whether a stored tensor is no weight: a mask, positions, or the scale of a quantised one."""
    return bool(_LEFT_OVER.search(key))


def is_ignored(key: str, tree: Tree) -> bool:
    """Whether the model's class says that it does not use a stored tensor."""
    return any(re.search(pattern, key) for pattern in tree.ignored)
