"""Extending a run: what a suite adds to a finished run without changing what the run has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from probes.store.journal import change_of

#: Lists of the section `attribute` that may grow.
_GROWING = ("methods", "granularity", "controls")


@dataclass(frozen=True)
class Added:
    """Prompts by id, and what the section `attribute` has more than before, in words."""

    prompts: tuple[str, ...] = ()
    attribution: tuple[str, ...] = ()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are done again: those over all prompts, with more prompts; else attribution alone."""
        return ("answers", "noise_floor", "effects") if self.prompts else ("effects",)

    def __str__(self) -> str:
        n = len(self.prompts)
        return ", ".join([*([f"{n} prompt{'s' * (n > 1)}"] if n else []), *self.attribution])


def added(before: Mapping[str, Any], now: Mapping[str, Any]) -> Added | str:
    """What one identity has more than the other, or the first change that is no addition, in words.

    Args:
        before: Of the run that is there (see `probes.store.writer.RunWriter.begin`), as JSON.
        now: Of the suite.
    """
    there, here = {tuple(prompt) for prompt in before["prompts"]}, [tuple(prompt) for prompt in now["prompts"]]
    grown = there <= set(here) and _each_alone(now["suite"])
    first, second = _rest(before, grown), _rest(now, grown)
    old, new = first["suite"].pop("attribute"), second["suite"].pop("attribute")
    change = change_of(first, second)
    if change is None and old is not None:
        change = _lost(old, new)
    if change is not None:
        return change
    return Added(tuple(prompt for prompt, _ in here if (prompt, _) not in there), tuple(_more(old or {}, new or {})))


def _each_alone(suite: Mapping[str, Any]) -> bool:
    """Whether what is captured of a prompt depends on that prompt alone, and is in shards."""
    return suite["generate"] is None and suite["answer_pattern"] is None and suite["tokenizer"] == "base"


def _rest(identity: Mapping[str, Any], grown: bool) -> dict[str, Any]:
    """An identity without its prompts, where these only grew."""
    rest = {**identity, "suite": dict(identity["suite"])}
    if grown:
        del rest["prompts"], rest["suite"]["prompts"]
    return rest


def _lost(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> str | None:
    """The first change of the section `attribute` that is no addition."""
    grown = dict(new or {})
    for name in _GROWING:
        if set(old[name]) <= set(grown.get(name, ())):
            grown[name] = old[name]
    if not old["curves"] and grown:
        grown["curves"] = False
    return change_of({"suite": {"attribute": old}}, {"suite": {"attribute": {k: grown.get(k) for k in old}}})


def _more(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in _GROWING:
        yield from (value for value in new.get(name, ()) if value not in old.get(name, ()))
    if new.get("curves") and not old.get("curves"):
        yield "curves"
