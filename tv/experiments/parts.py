"""A tuning vector cut into the parts of the model that it moves."""

from __future__ import annotations

from typing import Literal, get_args

from tv.checkpoints.live import LiveSource
from tv.checkpoints.opening import open_checkpoint
from tv.checkpoints.vector import TuningVector
from tv.errors import InputError, choices

By = Literal["whole", "component", "layer"]


def restrict(vector: TuningVector, names: list[str]) -> TuningVector:
    """The vector on these parameters, and nothing elsewhere."""
    return TuningVector(
        {name: vector.shapes[name] for name in vector.names if name in set(names)},
        vector.__getitem__,
        vector.provenance.scaled(1.0) | {"only": sorted(names)},
        vector.expert,
    )


def parts_of(vector: TuningVector, base: LiveSource, by: By) -> dict[str, TuningVector]:
    """The whole vector and, cut by `by`, its parts: attn, mlp, embed …; or layer 0, layer 1 …, in depth's order.

    The parts of one cut add up to the whole. Raises InputError for another cut.
    """
    if by not in get_args(By):
        raise InputError(f"no parts by {by!r}{choices(by, get_args(By))}")
    whole = {"whole": vector}
    if by == "whole":
        return whole
    architecture = open_checkpoint(base).architecture
    places = {name: architecture.component_of(name) for name in vector.names}
    cuts: dict[str, list[str]] = {}
    for name, (layer, component) in sorted(places.items(), key=lambda item: item[1][0]):
        inside = 0 <= layer < architecture.n_layers
        cuts.setdefault(f"layer {layer}" if by == "layer" and inside else component, []).append(name)
    return whole | {label: restrict(vector, names) for label, names in cuts.items()}
