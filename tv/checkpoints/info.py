"""What a checkpoint consists of."""

from __future__ import annotations

import pandas as pd

from tv.checkpoints.opening import Source, open_checkpoint


def info(source: Source) -> pd.DataFrame:
    """A row per module (norm gains and embeddings included), in execution order: its role, place and shape.

    Raises CheckpointError where the checkpoint cannot be read.
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
