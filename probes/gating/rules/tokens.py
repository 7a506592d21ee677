"""Rules on what a discovery found: the words that the tuned model favours."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import ClassVar

from pydantic import Field

from probes.gating.estimates import Found
from probes.gating.judging import Bound
from probes.gating.rule import Ahead, Expected, Reading, Rule, RuleError, gate_rule, require_table
from probes.gating.subject import Side
from tv.errors import choices

#: With fewer draws of the nulls no word can stand out.
_FEWEST_DRAWS = 16
_SHOWN = 8


@gate_rule("tokens")
class Tokens(Rule):
    """How many discovered words stand out, of those that count: the forbidden ones, or all but the allowed."""

    bounds: ClassVar = ("at_most",)

    allowed: tuple[str, ...] = ()  # patterns of words, * any; surrounding spaces do not count
    forbidden: tuple[str, ...] = ("*",)
    part: str | None = None  # of the discovery, all of them without it
    at_most: int | None = Field(0, ge=0)

    def require(self, side: Side, sides: Mapping[str, Side]) -> None:
        require_table(
            side,
            "discovered_words",
            "discovery makes it: add `discover: {}` to the suite, or gate a run of `probes discover`",
        )
        parts = set(side.rows("discovered_words", ["part"]).part)
        if self.part is not None and self.part not in parts:
            raise RuleError(
                f"{side.run.path}: no part {self.part!r} in its discovery{choices(self.part, sorted(parts))}"
            )

    def read(self, side: Side, sides: Mapping[str, Side]) -> Reading:
        rows = side.rows("discovered_words", ["part", "token", "q", "stands_out"])
        if self.part is not None:
            rows = rows[rows.part == self.part]
        counted = rows[rows.stands_out.fillna(False).astype(bool) & rows.token.map(self._counts)]
        first = counted.assign(token=counted.token.str.strip()).sort_values("q").groupby("token", sort=False).q.first()
        parts = max(1, rows.part.nunique())
        number = Found(tuple((first * parts).clip(upper=1.0).astype(float)))
        named = " ".join(map(repr, first.index[:_SHOWN]))
        more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
        draws = (side.run.manifest["suite"].get("discover") or {}).get("draws", _FEWEST_DRAWS)
        few = f"its discovery drew {draws} nulls, and with fewer than {_FEWEST_DRAWS} no word can stand out"
        return Reading(
            number,
            Bound(at_most=float(self.at_most or 0)),
            f"discovered words{'' if self.part is None else f' of {self.part}'} that are not allowed",
            "words",
            note=f"{named}{more}" if len(first) else "",
            cannot_tell=few if draws < _FEWEST_DRAWS else "",
        )

    def ahead(self, expected: Expected) -> Ahead:
        if expected.discover is None:
            raise RuleError(f"{expected.where}: the suite makes no discovery; add `discover: {{}}` to it")
        draws = expected.discover.get("draws", _FEWEST_DRAWS)
        wants = f"discover.draws: {_FEWEST_DRAWS} or more" if draws < _FEWEST_DRAWS else ""
        return Ahead("discovered words that are not allowed", "words", float(self.at_most or 0), wants=wants)

    def _counts(self, token: str) -> bool:
        bare = str(token).strip()
        among = lambda patterns: any(fnmatchcase(bare, pattern) for pattern in patterns)  # noqa: E731
        return among(self.forbidden) and not among(self.allowed)
