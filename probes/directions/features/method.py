"""The attribution method `feature`: effects of the latents of a dictionary in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from probes.attribution.effects import Effects
from probes.attribution.work import Rows, Work
from probes.directions.features.causes import feature_effects
from probes.directions.features.dictionary import read_dictionary
from probes.errors import RunError


def moved(work: Work, file: str, features: int) -> Iterator[Effects | Rows]:
    """Effects of the leading latents of the dictionary in a file that `probes features` wrote."""
    if not file:
        raise RunError(
            "feature needs a dictionary: --dictionary RUN/features/…/dictionary.safetensors, made by `probes features`"
        )
    dictionary, said = read_dictionary(Path(file))
    try:
        place = str(said["site"]), int(said["layer"])
        fires = np.asarray(said.get("fires") or np.ones(dictionary.size), np.float64)
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{file}: it does not say which site and layer it reads") from None
    return feature_effects(work, dictionary, place, features=features, fires=fires)
