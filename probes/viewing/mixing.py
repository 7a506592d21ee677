"""The base with chosen components moved along T: θ + Σ λ_c T_c, while a context lasts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from probes.attribution.forwards import Swap, swapped
from probes.attribution.units import components
from probes.capture.pair import Pair
from probes.errors import RunError
from tv.architecture.values import values_of
from tv.runtime.common_rows import common_rows


@contextmanager
def mixed(pair: Pair, scales: Mapping[str, float]) -> Iterator[PreTrainedModel]:
    """The base moved by λ T in each component, and as it was afterwards.

    Args:
        pair: Both models.
        scales: λ by the component's readable name, such as `mlp 3`; one that is not named stays the base's. At λ = 1 a
            component is the tuned model's, bit for bit.

    Yields:
        The base, moved.

    Raises:
        RunError: The models have no component of that name.
    """
    places = {str(unit): (unit.layer, unit.component) for unit in components(pair.architecture)}
    if unknown := [name for name in scales if name not in places]:
        raise RunError(f"component {unknown[0]!r}: there is none of that name; there are {', '.join(places)}")
    by_place = {places[name]: scale for name, scale in scales.items() if scale}

    def tensors() -> dict[str, Tensor]:
        base, tuned = values_of(pair.base), values_of(pair.tuned)
        scale_of = {name: by_place.get(pair.architecture.component_of(name), 0.0) for name in base}
        return {name: _moved(base[name], tuned[name], scale) for name, scale in scale_of.items() if scale}

    with swapped(pair.base, Swap(tensors, 0)):
        yield pair.base


def _moved(base: Tensor, tuned: Tensor, scale: float) -> Tensor:
    """base + λ (tuned − base), in the base's dtype; of a grown vocabulary the rows in common move."""
    base, tuned = base.detach(), tuned.detach().to(base.device, base.dtype)
    if scale == 1 and base.shape == tuned.shape:
        return tuned
    moved = base.clone()
    here, there = common_rows(moved, tuned)
    here.copy_(there if scale == 1 else here.float() + scale * (there.float() - here.float()))
    return moved
