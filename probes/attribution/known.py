"""Values of the metric that are there already, so that no model is read twice on a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from probes.attribution.forwards import Floats, Variant


class Known:
    """Values by variant and prompt, in memory. A journal keeps them on disk too."""

    def __init__(self) -> None:
        self._values: dict[Variant, dict[str, float]] = {}

    def has(self, variant: Variant, prompts: Sequence[str]) -> bool:
        """Whether the values of all these prompts are there."""
        return self._values.get(variant, {}).keys() >= set(prompts)

    def of(self, variant: Variant, prompts: Sequence[str]) -> Floats:
        """The values of these prompts, (prompts,)."""
        return np.array([self._values[variant][prompt] for prompt in prompts], np.float64)

    def keep(self, prompts: Sequence[str], found: Mapping[Variant, Floats]) -> None:
        """Keep what was computed on the prompts of one batch: by variant, (prompts,)."""
        for variant, values in found.items():
            self._values.setdefault(variant, {}).update(zip(prompts, values.tolist(), strict=True))
