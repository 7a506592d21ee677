"""The model card of a checkpoint that tuning-vector arithmetic made: from what, by what, and what storing it lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tv.arithmetic.rounding import Rounding
from tv.checkpoints.location import place_of


def card(name: str, made: Mapping[str, Any], rounding: Rounding, notes: Sequence[str]) -> str:
    """README.md as text. `made` is what `tv.apply` records of itself in every weights file too."""
    base = made["base"]
    rows = [f"| {one['name']} | {one['scale']:g} | {_origin(one['from'])} |" for one in made["vectors"]]
    options = "".join(f", {key} {value:g}" for key, value in made["options"].items())
    where = [f"only {', '.join(made['only'])}"] * bool(made["only"])
    where += [f"all but {', '.join(made['except'])}"] * bool(made["except"])
    seed = f", seed {made['seed']}" if made["method"] == "dare" or made["stochastic_rounding"] else ""
    how = "stochastic" if made["stochastic_rounding"] else "to the nearest"
    lines = [
        "---",
        f'base_model: "{place_of(base["source"]).name}"',
        "library_name: transformers",
        "tags: [merge, task-arithmetic]",
        "---",
        "",
        f"# {name}",
        "",
        f"`{base['source']}` moved along tuning vectors. It was not trained, and nobody has evaluated it here.",
        "",
        "| vector | λ | from |",
        "| --- | --- | --- |",
        *rows,
        "",
        f"- method: {made['method']}{options}{seed}",
        f"- parameters: {'; '.join(where) or 'all'}",
        f"- base: `{base['source']}`, fingerprint {base['content'][:16]}, {base['dtype']}",
        f"- stored as {made['dtype']}, rounded {how}; {in_words(rounding)}",
        *[f"- {note}" for note in notes],
        "",
        "Made by `tv apply` (tuning-probes). The metadata of the weights files holds the same record in full.",
        "",
    ]
    return "\n".join(lines)


def in_words(rounding: Rounding) -> str:
    """What storing left of T."""
    if not rounding.signal:
        return "nothing moved"
    if not rounding.error:
        return "nothing of T was lost"
    return f"‖T‖ is {rounding.ratio:,.3g} times what rounding added"


def _origin(provenance: Mapping[str, Any]) -> str:
    """The two sides of a vector, as far as its provenance tells."""
    sides = [provenance.get(side) for side in ("tuned", "base")]
    told = [f"`{side['source']}` ({side['content'][:16]})" for side in sides if isinstance(side, dict)]
    return " − ".join(told) or "a vector of unknown origin"
