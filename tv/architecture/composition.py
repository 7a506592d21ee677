"""What the blocks of a model consist of, in one line for a reader."""

from __future__ import annotations

from collections import Counter

from tv.architecture.anatomy import Architecture, Block


def composition(architecture: Architecture) -> str:
    """The layers by what their blocks consist of.

    Args:
        architecture: Of any model.

    Returns:
        "48 layers: 36 × linear_attn + mlp, 12 × attn + mlp"; of a mixture the number of experts too.

    Examples:
        >>> from tv.checkpoints.opening import open_checkpoint
        >>> composition(open_checkpoint("data/models/base").architecture)
        '4 layers: 4 × attn + mlp'
    """
    experts = Counter((m.layer, m.component) for m in architecture.modules if m.expert >= 0 and m.name == "down")

    def named(block: Block, component: str) -> str:
        n = experts[block.layer, component]
        return f"{component} of {n} experts" if n else component

    kinds = Counter(
        " + ".join(named(block, writer.component) for writer in block.writers) for block in architecture.blocks
    )
    parts = ", ".join(f"{n} × {kind}" for kind, n in kinds.most_common())
    return f"{architecture.n_layers} layers" + (f": {parts}" if parts else "")
