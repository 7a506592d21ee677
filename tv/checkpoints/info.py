"""What a checkpoint consists of."""

from __future__ import annotations

import pandas as pd

from tv.checkpoints.opening import Source, open_checkpoint


def info(source: Source) -> pd.DataFrame:
    """What a checkpoint consists of, read off its headers.

    Args:
        source: Whatever `open_checkpoint` opens.

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
    checkpoint = open_checkpoint(source)
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
