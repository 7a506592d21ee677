"""What a checkpoint consists of."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tv.architecture.anatomy import Module
from tv.checkpoints.checkpoint import Checkpoint
from tv.checkpoints.coverage import coverage
from tv.checkpoints.location import place_of
from tv.checkpoints.opening import Source, open_checkpoint, outline
from tv.checkpoints.outline import is_outline
from tv.checkpoints.outside import groups_outside, members

if TYPE_CHECKING:
    import pandas as pd


def info(source: Source) -> pd.DataFrame:
    """What a checkpoint consists of, read off its headers.

    Args:
        source: Whatever `open_checkpoint` opens, or a configuration without weights: its directory or its file.

    Returns:
        A row per module, norm gains and embeddings included, in execution order, then one per other parameter and per
        part beside the language model: `layer module expert kind component rows cols numbers heads dtype tied
        parameter`.
        `attrs["notes"]` says what is in no row.

    Raises:
        CheckpointError: The checkpoint cannot be read.

    Examples:
        >>> modules = tv.info("data/models/base")
        >>> modules[modules.layer == 0].module.tolist()
        ['attn_norm', 'q', 'k', 'v', 'o', 'mlp_norm', 'gate', 'up', 'down']
    """
    import pandas as pd  # here: the command prints the rows without it

    checkpoint = described(source)
    frame = pd.DataFrame(info_rows(checkpoint))
    frame.attrs["fingerprints"] = {"model": checkpoint.fingerprint()["content"]}
    frame.attrs["notes"] = info_notes(checkpoint)
    return frame


def info_rows(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """The rows of `info`."""
    architecture = checkpoint.architecture
    modules = (*architecture.modules, *architecture.others, *groups_outside(checkpoint, checkpoint))
    return [_row(checkpoint, module) for module in modules]


def info_notes(checkpoint: Checkpoint) -> list[str]:
    """What a reader of the rows should know."""
    return [*checkpoint.notes, *filter(None, [checkpoint.architecture.note, coverage(checkpoint).note])]


def described(source: Source) -> Checkpoint:
    """A checkpoint; where there is a configuration without weights, the model that it describes."""
    if isinstance(source, str | Path) and isinstance(place := place_of(source), Path) and is_outline(place):
        return outline(source)
    return open_checkpoint(source)


def _row(checkpoint: Checkpoint, module: Module) -> dict[str, Any]:
    shape, names = module.shape, [module.parameter]
    if module.kind == "group":
        names = members(checkpoint, module)
        shape = (len(names),)
    held = [checkpoint.info(name) for name in names if name in checkpoint.reader.infos or name in checkpoint.beside]
    sizes = Counter[str]()
    for info in held:
        sizes[info.dtype] += math.prod(info.shape)
    return {
        "layer": module.layer,
        "module": module.name,
        "expert": module.expert,
        "kind": module.kind,
        "component": module.component,
        "rows": shape[0] if shape else 1,
        "cols": math.prod(shape[1:]),
        "numbers": sum(math.prod(info.shape) for info in held) if module.kind == "group" else math.prod(shape),
        "heads": module.n_heads,
        "dtype": max(sizes, key=lambda dtype: sizes[dtype], default=""),
        "tied": module.tied,
        "parameter": module.parameter,
    }
