"""What an architecture consists of, in a line."""

from __future__ import annotations

from collections import Counter

from tv.architecture.anatomy import Architecture, Block


def in_words(architecture: Architecture) -> str:
    """Layers, sizes, heads and the kind of MLP; sizes that differ from layer to layer are all named.

    Examples:
        >>> in_words(tv.open_checkpoint("data/models/base").architecture)
        '6 layers, d_model 160, 8 heads, 4 key-value heads, GLU'
    """
    told = [f"{architecture.n_layers} layers{_mixed(architecture)}"]
    told += [f"d_model {architecture.d_model}"] if architecture.d_model else []
    told += _heads(architecture, "q", architecture.n_heads, "heads")
    told += _heads(architecture, "k", architecture.n_kv_heads, "key-value heads")
    if architecture.gated:
        told.append("GLU")
    elif architecture.blocks:
        told.append("no GLU" if "mlp" in architecture.components else "no MLP")
    return ", ".join(told)


def composition(architecture: Architecture) -> str:
    """The layers by what their blocks consist of.

    Args:
        architecture: Of any model.

    Returns:
        "48 layers: 36 × linear_attn + mlp, 12 × attn + mlp"; of a mixture the number of experts too.

    Examples:
        >>> composition(tv.open_checkpoint("data/models/base").architecture)
        '6 layers: 6 × attn + mlp'
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


def _mixed(architecture: Architecture) -> str:
    """The kinds of block, where they are not attention and an MLP throughout."""
    kinds = Counter(tuple(writer.component for writer in block.writers) for block in architecture.blocks)
    if not kinds.keys() - {("attn", "mlp")}:
        return ""
    return " (" + ", ".join(f"{n} × {' + '.join(names)}" for names, n in kinds.items()) + ")"


def _heads(architecture: Architecture, module: str, stated: int, what: str) -> list[str]:
    """How many heads a matrix is cut into, in every layer that has it; else what the configuration states."""
    counts = sorted({m.n_heads for m in architecture.modules if m.name == module and m.n_heads}) or [stated]
    if not counts[0]:
        return []
    return [f"{' or '.join(map(str, counts))} {what}{' by layer' if len(counts) > 1 else ''}"]
