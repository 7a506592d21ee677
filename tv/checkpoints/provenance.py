"""Where a tuning vector comes from, and what follows from that: its base, its dtype, its rounding."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from tv.checkpoints.noise import Noise, coarsest
from tv.errors import first_line


class Provenance(dict[str, Any]):
    """A mapping that JSON can hold: `base` and `tuned` of a pair, or what was scaled, added or replaced by a control.

    Example: ``{"scale": 0.5, "of": {"base": {…}, "tuned": {…}, "noise": {…}}}``.
    """

    @classmethod
    def parse(cls, text: str, names: Iterable[str]) -> Provenance:
        """The provenance in a file that moves these parameters. Raises ValueError where the text is none."""
        try:
            parsed = cls(json.loads(text))
            for name in names:  # everything that can be asked of them
                parsed.dtype(name), parsed.noise(name), parsed.tied
            if parsed.base is not None:
                parsed.base.get("source")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"its provenance cannot be read: {first_line(error)}") from None
        return parsed

    def scaled(self, scale: float) -> Provenance:
        """The provenance of the vector times `scale`."""
        return Provenance(scale=scale, of=self)

    def plus(self, other: Provenance) -> Provenance:
        """The provenance of the sum."""
        return Provenance(sum=[self, other])

    def control(self, kind: str, seed: int) -> Provenance:
        """The provenance of a control, which is given this vector's rounding."""
        base = {} if self.base is None else {"base": self.base}
        return Provenance(control=kind, seed=seed, control_of=self, **base)

    @property
    def base(self) -> dict[str, Any] | None:
        """The base of the vector, of what was scaled, or of the first summand with one."""
        if isinstance(self.get("base"), dict):
            return self["base"]
        return next((one.base for one in self._operands() if one.base is not None), None)

    @property
    def tied(self) -> tuple[str, str] | None:
        """The embedding's parameter and the unembedding's of a vector that moves both as one; otherwise None."""
        if "tied" in self:
            embed, unembed = self["tied"]
            return str(embed), str(unembed)
        return next((one.tied for one in self._operands() if one.tied is not None), None)

    def dtype(self, name: str) -> str:
        """The coarsest dtype that tuned sides hold a parameter in; F32 where none is recorded."""
        return coarsest(self._dtypes(name))

    def noise(self, name: str) -> Noise:
        """The rounding of a parameter. Independent errors add in squares."""
        operands = self._operands()
        if not operands:
            told = self.get("noise", {})
            of_weight, of_delta = told.get("others", {}).get(name, told.get("most", (0.0, 0.0)))
            return Noise(float(of_weight), float(of_delta))
        parts = [one.noise(name) for one in operands]
        of_weight, of_delta = math.hypot(*(part.of_weight for part in parts)), max(part.of_delta for part in parts)
        return Noise(abs(float(self.get("scale", 1.0))) * of_weight, of_delta)

    def _operands(self) -> list[Provenance]:
        """What was scaled or added, or what a control replaces."""
        single = next((self[key] for key in ("of", "control_of") if key in self), None)
        return [Provenance(one) for one in (self.get("sum", []) if single is None else [single])]

    def _dtypes(self, name: str) -> Iterator[str]:
        tuned = self.get("tuned")
        if isinstance(tuned, dict):
            yield str(tuned.get("other_dtypes", {}).get(name, tuned.get("dtype", "F32")))
        for inner in self._operands():
            yield from inner._dtypes(name)
