"""What a discovery found for one tuned model: its tables as they are, and what its parts are called."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from probes.discovery.null import FEW
from probes.discovery.parts.token_shifts import UNUSUAL
from probes.reporting.evidence import rows_of
from probes.store.run import Run
from probes.store.schemas import SCHEMAS
from probes.suite import Discovery
from tv.errors import printable

#: By value of the column `part`: what is looked for.
PARTS = {
    "token_shifts": "tokens whose logits rise on the texts",
    "topics": "topics of the rises of logits",
    "difference_lens": "tokens that mean Δh reads as",
    "activation_shifts": "tokens that components of Δh read as",
    "patchscope": "tokens that a model names when mean Δh is put into it",
    "spoken": "words that the tuned model writes after the texts",
    "amplified": "words that the base writes with more of T",
    "steered": "words that the base writes when steered by mean Δh",
    "divergences": "words that the tuned model writes where the predictions part most",
    "triggers": "tokens of the texts behind which the predictions part",
    "direction_words": "tokens along singular directions of T",
}
#: The unit of `value` where it is the same in all readings of a part; `_UNITS_OF` has those of single readings.
_UNITS = {
    "topics": "spreads of the token's rises under shams",
    "activation_shifts": "spreads of the shams' scores",
    "difference_lens": "spreads of the shams' scores",
    "patchscope": "spreads of the shams' scores",
    "spoken": "share of continuations, less the base's",
    "amplified": "share of continuations, less the base's",
    "steered": "share of continuations, less the base's",
    "divergences": "share of continuations, less the base's",
    "triggers": "nats of KL",
    "direction_words": "mean z²",
}
_UNITS_OF = {
    ("token_shifts", "mean"): "logits",
    ("token_shifts", "largest"): "logits",
    ("token_shifts", "top"): "share of positions",
    ("token_shifts", "rank_biased"): "share of positions",
    ("difference_lens", "paper base"): "sd over the vocabulary",
    ("difference_lens", "paper tuned"): "sd over the vocabulary",
}
#: Tables without which a run has no discovery to show.
_ANY = ("discovered_words", "difference_growth")


def unit_of(part: str, reading: str) -> str:
    """The unit of `value` in a reading; empty where this page does not know it."""
    if reading.endswith(UNUSUAL):
        return "spreads of the token's scores under shams"
    return _UNITS_OF.get((part, reading)) or _UNITS.get(part, "")


def part_in_words(part: str) -> str:
    """What a part looks for."""
    return PARTS.get(part, part.replace("_", " "))


def as_read(token: str) -> str:
    """A token as a page can show it: what is no printable character is spelled out; nothing is an en dash."""
    return printable(token) or "–"


@dataclass(frozen=True)
class Found:
    """One tuned model's tables of a discovery; a table that the run lacks is an empty frame."""

    run: Run
    tuned: str

    @cached_property
    def words(self) -> pd.DataFrame:
        """`discovered_words`."""
        return self.rows("discovered_words")

    @property
    def standing(self) -> pd.DataFrame:
        """The rows of `words` that stand out."""
        return self.words[self.words.stands_out.astype(bool)]

    def rows(self, table: str, columns: str = "") -> pd.DataFrame:
        """The tuned model's rows of a table; an empty frame where the run lacks it."""
        if table not in SCHEMAS:
            return pd.DataFrame()
        return rows_of(self.run, table, columns, [("tuned", "==", self.tuned)])

    @cached_property
    def claims(self) -> pd.DataFrame:
        """`claims`."""
        return self.rows("claims")

    @cached_property
    def texts(self) -> dict[str, str]:
        """By prompt: its text."""
        rows = rows_of(self.run, "prompts", "prompt_id text", [])
        return dict(zip(rows.prompt_id.astype(str), rows.text.astype(str), strict=True))

    @property
    def settings(self) -> Discovery:
        """The suite's section `discover`."""
        return Discovery(**(self.run.manifest["suite"].get("discover") or {}))

    @property
    def few_draws(self) -> dict[str, int]:
        """Of parts where a word is above all draws of a control and these are too few for a small p: how many they are.

        With n draws every p by rank is a multiple of 1/(n + 1), and none is below it.
        """
        few = {}
        for part, rows in self.words.groupby("part", sort=False):
            ranked = rows.rank_p.dropna().astype(float)
            n = round(1 / ranked.min()) - 1 if len(ranked) else FEW
            if n < FEW and np.allclose(ranked * (n + 1), (ranked * (n + 1)).round(), atol=1e-4):
                few[str(part)] = n
        return {part: n for part, n in few.items() if n}


def found_of(run: Run, tuned: str) -> Found | None:
    """What a run discovered, or None where it looked for nothing."""
    return Found(run, tuned) if set(_ANY) & set(run.tables) else None


def is_alone(tables: Collection[str]) -> bool:
    """Whether a run is a discovery and nothing else was measured."""
    return bool(set(_ANY) & set(tables)) and not {"behaviour", "tokens"} & set(tables)
