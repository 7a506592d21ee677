"""Rows for every parameter that is no module and no bias of one: sinks, kernels, scalars, and parts beside the text.

So no parameter is in no row. A part beside the text model (a vision tower, a projector) is one group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tv.architecture.anatomy import Module
from tv.architecture.trunk import Trunk
from tv.architecture.values import values_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def others_of(model: PreTrainedModel, modules: Sequence[Module], trunk: Trunk) -> tuple[Module, ...]:
    """Of each such parameter the row, in the order of the model; of each group one."""
    known = {module.parameter for module in modules}
    known |= {f"{module.path}.bias" for module in modules if module.expert < 0}
    near: dict[str, Module] = {}
    for module in modules:
        place = module.path
        while place:
            near.setdefault(place, module)
            place = place.rpartition(".")[0]
    paths = {module.path for module in modules}
    towers = _towers(model, trunk)
    rows, groups = list[Module](), dict[str, Module]()
    for name, value in values_of(model).items():
        if name in known:
            continue
        path = name.rpartition(".")[0]
        layer, inside = _place(name, trunk.stack)
        group = None if layer is not None or path in paths else _group(name, trunk, towers)
        if group is not None:
            label = group.rpartition(".")[2]
            groups.setdefault(group, Module(-1, label, "group", label, group, group, ()))
            continue
        place = path
        while place and place not in near:
            place = place.rpartition(".")[0]
        owner = near.get(place)
        if layer is None:
            at, component = (owner.layer, owner.component) if path in paths and owner else (-1, "embed")
        else:
            inner = owner is not None and owner.layer == layer and place != f"{trunk.stack}.{layer}"
            at, component = layer, owner.component if inner and owner is not None else "other"
        rows.append(Module(at, inside, "vector", component, path, name, tuple(value.shape)))
    return (*rows, *groups.values())


def _place(parameter: str, stack: str) -> tuple[int | None, str]:
    """The block that a parameter lies in, and its name there; outside the blocks None and its own name."""
    inside = parameter.removeprefix(f"{stack}.")
    number, _, rest = inside.partition(".")
    if inside == parameter or not number.isdigit():
        return None, parameter.removesuffix(".weight")
    return int(number), rest.removesuffix(".weight")


def _towers(model: PreTrainedModel, trunk: Trunk) -> set[str]:
    """The parts of the trunk that are models of their own, by the depth of what they hold: a tower of its pictures."""
    found = set()
    for name, _ in model.named_parameters():
        inside = name.removeprefix(f"{trunk.path}.")
        part, *rest = inside.split(".")
        if inside != name and len(rest) > 2 and f"{trunk.path}.{part}" != trunk.stack:
            found.add(f"{trunk.path}.{part}")
    return found


def _group(parameter: str, trunk: Trunk, towers: set[str]) -> str | None:
    """The largest part that holds this parameter and not the text model; None where it lies beside or in that."""
    if parameter.startswith(f"{trunk.path}."):
        return next((tower for tower in towers if parameter.startswith(f"{tower}.")), None)
    segments = parameter.split(".")
    places = (".".join(segments[:depth]) for depth in range(1, len(segments)))
    return next((place for place in places if not f"{trunk.path}.".startswith(f"{place}.")), None)
