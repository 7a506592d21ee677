"""What a checkpoint consists of."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.location import place_of
from tv.checkpoints.opening import Source, open_checkpoint, outline
from tv.checkpoints.outline import is_outline


def info(source: Source) -> pd.DataFrame:
    """What a checkpoint consists of, read off its headers.

    Args:
        source: Whatever `open_checkpoint` opens, or a configuration without weights: its directory or its file.

    Returns:
        A row per module, norm gains and embeddings included, in execution order: `layer module expert kind component
        rows cols heads dtype tied parameter`.

    Raises:
        CheckpointError: The checkpoint cannot be read.

    Examples:
        >>> modules = tv.info("data/models/base")
        >>> modules[modules.layer == 0].module.tolist()
        ['attn_norm', 'q', 'k', 'v', 'o', 'mlp_norm', 'gate', 'up', 'down']
    """
    checkpoint = described(source)
    frame = pd.DataFrame(
        [
            {
                "layer": module.layer,
                "module": module.name,
                "expert": module.expert,
                "kind": module.kind,
                "component": module.component,
                "rows": module.shape[0],
                "cols": module.shape[1] if len(module.shape) > 1 else 1,
                "heads": module.n_heads,
                "dtype": checkpoint.info(module.parameter).dtype,
                "tied": module.tied,
                "parameter": module.parameter,
            }
            for module in checkpoint.architecture.modules
        ]
    )
    frame.attrs["fingerprints"] = {"model": checkpoint.fingerprint()["content"]}
    return frame


def described(source: Source) -> Checkpoint:
    """A checkpoint; where there is a configuration without weights, the model that it describes."""
    if isinstance(source, str | Path) and isinstance(place := place_of(source), Path) and is_outline(place):
        return outline(source)
    return open_checkpoint(source)
