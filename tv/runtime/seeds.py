"""A seed from a text: what is drawn depends on its purpose, and neither on order nor on the device."""

from __future__ import annotations

import hashlib

from tv.errors import InputError


def seed_of(key: str | bytes) -> int:
    """A 64-bit seed for torch's generators, the same on every machine.

    Args:
        key: What the draw is for: "random 0 model.layers.0.mlp.up_proj.weight".

    Examples:
        >>> seed_of("a") == seed_of(b"a") != seed_of("b")
        True
    """
    content = key.encode() if isinstance(key, str) else key
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


def require_seed(seed: int) -> None:
    """Raise InputError for a seed that NumPy's generators do not take."""
    if seed < 0:
        raise InputError(f"seed {seed}: a whole number from 0 on")
