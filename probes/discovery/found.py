"""What the tables of a run say was found, by the name that a metric gives it: `discovered:PART/READING`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from probes.attribution.finding import DISCOVERED
from probes.errors import NothingFound, RunError
from probes.store.run import Run, load

_LOG = logging.getLogger(__name__)
Made = TypeVar("Made")
#: Parts whose finding may be places, not words; the second names rows of `discovered_words` that the first gives.
DIVERGENCES, TRIGGERS = "divergences", "triggers"
#: The part whose finding may be a direction.
LENS = "difference_lens"
_ELSE = "; choose another finding, or name the stages without attribute to keep what was discovered"


@dataclass(frozen=True)
class Named:
    """A finding's name, taken apart."""

    part: str
    reading: str  # empty: of words, the reading with the most that stand out

    @classmethod
    def of(cls, metric: str) -> Named:
        """From `discovered:PART/READING`."""
        part, _, reading = metric.removeprefix(DISCOVERED).partition("/")
        return cls(part.strip(), reading.strip())

    def __str__(self) -> str:
        return DISCOVERED + "/".join(filter(None, (self.part, self.reading)))

    @property
    def is_direction(self) -> bool:
        """Whether it is mean Δh at a kind of place."""
        return self.part == LENS and self.reading in ("first", "bos", "far")

    @property
    def is_places(self) -> bool:
        """Whether it is where predictions lie apart."""
        return self.part == TRIGGERS or (self.part == DIVERGENCES and not self.reading)


def source_of(path: str) -> Run:
    """The earlier run whose finding is meant. Raises RunError where there is none, or one without a discovery."""
    if not Path(path).is_dir():
        raise RunError(f"attribute: discovered: {path}: no such run; make it with `probes discover --out`")
    run = load(path)
    if run.manifest["suite"].get("discover") is None:
        raise RunError(f"attribute: discovered: {path} is a run without a discovery; make one with `probes discover`")
    return run


def with_a_finding(names: Iterable[str], make: Callable[[str], Made]) -> tuple[dict[str, Made], dict[str, str]]:
    """What is made of every tuned model that has a finding, and by name why the others have none.

    Raises:
        NothingFound: None has one.
    """
    made: dict[str, Made] = {}
    missing: dict[str, NothingFound] = {}
    for name in names:
        try:
            made[name] = make(name)
        except NothingFound as error:
            missing[name] = error
    if missing and not made:
        raise next(iter(missing.values()))
    notes = {name: f"no effects: {why}" for name, why in missing.items()}
    for name, note in notes.items():
        _LOG.warning("%s: %s", name, note)
    return made, notes


def require_same_tokens(source: Run, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise RunError where the ids of a run's tokens are other tokens to this tokenizer."""
    for table in ("discovered_words", DIVERGENCES):
        rows = source.df(table, columns=["token_id", "token"]) if table in source.tables else pd.DataFrame()
        for row in rows.drop_duplicates().itertuples():
            own = tokenizer.decode([row.token_id]) if row.token_id < len(tokenizer) else "nothing"
            if own != str(row.token):
                raise RunError(
                    f"attribute: discovered: {source.path} has another tokenizer: its token {row.token_id} is "
                    f"{str(row.token)!r}, and this base's {own!r}; discover with this base"
                )


def words_found(source: Run, named: Named, tuned: str) -> pd.DataFrame:
    """The rows of `discovered_words` that stand out in a reading; none where the finding is no words.

    Args:
        source: A run with a discovery.
        named: The finding.
        tuned: The tuned model's name; a run with a single one need not have it.

    Raises:
        RunError: The run has no such part or reading.
        NothingFound: It has, and nothing stands out there.
    """
    own = [("tuned", "==", tuned_in(source, tuned))]
    if named.part == DIVERGENCES and named.is_places:
        if DIVERGENCES not in source.tables:
            raise RunError(f"{named}: {source.path} lacks the part {DIVERGENCES}")
        return pd.DataFrame({"token_id": []})
    if named.is_direction:
        _require_constant(source, named, own)
        return pd.DataFrame({"token_id": []})
    words = source.df("discovered_words", where=own) if "discovered_words" in source.tables else pd.DataFrame()
    there = words[words.part == named.part] if len(words) else words
    if named.reading and len(there):
        there = there[there.reading == named.reading]
    if there.empty:
        raise RunError(f"{named}: {source.path} has no such reading; it has {_readings(words) or 'none'}")
    out = there[there.stands_out.astype(bool)]
    if out.empty:
        others = _readings(words[words.stands_out.astype(bool)])
        raise NothingFound(f"{named}: no word stands out there; such words are in {others or 'no reading'}{_ELSE}")
    return out[out.reading == out.reading.astype(str).value_counts().index[0]]


def tuned_in(source: Run, tuned: str) -> str:
    """The tuned model of a run whose finding is meant. Raises RunError where it is not clear."""
    there = list(source.manifest["suite"]["tuned"])
    if tuned not in there and len(there) > 1:
        raise RunError(f"{source.path} has discovered nothing of {tuned!r}; it has {', '.join(there)}")
    return tuned if tuned in there else str(there[0])


def _readings(words: pd.DataFrame) -> str:
    if words.empty:
        return ""
    return ", ".join(sorted({f"{part}/{reading}" for part, reading in zip(words.part, words.reading, strict=True)}))


def _require_constant(source: Run, named: Named, own: list[tuple[str, str, str]]) -> None:
    """Raise RunError where mean Δh of the last depth makes no more of Δh than that of controls."""
    norms = source.df("difference_norms", where=own) if "difference_norms" in source.tables else pd.DataFrame()
    at = norms[norms.place == named.reading] if len(norms) else norms
    if at.empty:
        raise RunError(f"{named}: {source.path} has no mean Δh at that place; its discovery lacks {LENS}")
    last = at[at.depth == at.depth.max()].iloc[0]
    null = np.nanmax([last.constant_sham, last.constant_random, last.constant_floor, 0.0])
    if not last.constant > null:
        raise NothingFound(f"{named}: mean Δh is {last.constant:.2f} of Δh there, of a control {null:.2f}{_ELSE}")
