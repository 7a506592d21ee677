"""Features as causes, as suites and command lines know them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from probes.methods import attribution_method

if TYPE_CHECKING:
    from probes.attribution.effects import Effects
    from probes.attribution.units import Unit
    from probes.attribution.work import Rows, Work


@attribution_method(
    "feature",
    words="feature effect",
    explains="Feature: what a latent of a dictionary writes into Δh, given to the base or taken from the tuned model.",
    tables=("feature_curves",),
    order=5,  # first: where no dictionary is named, nothing else has been waited for
)
def feature(
    work: Work,
    units: Sequence[Unit],
    *,
    dictionary: Annotated[
        str, Field(description="Of feature: a file that `probes features` wrote, RUN/features/….safetensors.")
    ] = "",
    features: Annotated[
        int, Field(strict=True, ge=1, le=10_000, description="The latents that are moved one by one: those that lead.")
    ] = 16,
) -> Iterator[Effects | Rows]:
    """See `probes.directions.features.causes.feature_effects`."""
    from probes.directions.features.method import moved

    return moved(work, dictionary, features)
