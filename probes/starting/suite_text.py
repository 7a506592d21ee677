"""The text of a suite with a comment for every line."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from probes.starting.prompt_files import Found

#: Rows of a set that are read at most, until somebody says how many.
MOST = 200
#: Tokens of the base's continuation where prompts have no targets.
_CONTINUED = 32
_WIDTH = 110
_AT = 34  # where the comments of lines begin

_MEASURES = {
    "gates": "which MLP neurons switch on or off",
    "contributions": "what attention and MLP add to the residual stream",
    "changes": "how far these contributions differ between the models",
    "ledger": "how much of each module's change is due to its own weights",
    "lens": "what each layer would answer",
    "behaviour": "how well each model answers, or how much their answers differ",
}
_METRICS = {
    "logit_diff": "target against foil, for the prompts that have both",
    "target_nll": "how unlikely the target is: there are no foils",
    "kl": "how much the models' next tokens differ: there are no targets",
}


@dataclass(frozen=True)
class Draft:
    """What a suite is written of."""

    name: str
    base: str
    tuned: str
    sets: Sequence[Found]
    chat: bool | str | None  # the value of `chat` where a set is put through a template
    about_base: str
    about_tuned: Sequence[str]
    folder: Path  # where the suite will lie

    @property
    def metric(self) -> str:
        """What effects are measured on: the most that the prompts allow."""
        prompts = [prompt for found in self.sets for prompt in found.prompts]
        if any(prompt.foil is not None for prompt in prompts):
            return "logit_diff"
        return "target_nll" if any(prompt.target is not None for prompt in prompts) else "kl"

    def text(self) -> str:
        """The YAML."""
        return "\n".join([*self._models(), *self._prompts(), *self._work()]) + "\n"

    def _models(self) -> Iterable[str]:
        yield "# What to compare, on which prompts, and what to measure, for `probes run`. Any line may be changed."
        yield "# Paths are relative to this file. `python -c 'import probes; help(probes.Suite)'` describes every key."
        yield ""
        yield _line("name", self.name, "without --out, the run goes to reports/NAME")
        yield ""
        yield _comment(f"The model before fine-tuning: {self.about_base}")
        yield _line("base", self._path(self.base), "")
        yield ""
        yield "# The model after it, under the name that tables and figures give it. Each further line adds a model."
        yield from map(_comment, self.about_tuned)
        yield "tuned:"
        yield f"  {_value(self.name)}: {_value(self._path(self.tuned))}"
        yield ""

    def _prompts(self) -> Iterable[str]:
        yield "prompts:"
        for found in self.sets:
            yield from self._set(found)
        yield ""

    def _set(self, found: Found) -> Iterable[str]:
        chosen, n = found.chosen, len(found.prompts)
        targets = sum(prompt.target is not None for prompt in found.prompts)
        foils = sum(prompt.foil is not None for prompt in found.prompts)
        rows = "1 row" if n == 1 else f"{n:,} rows"
        yield _comment(f"{rows}: {targets:,} with a target (the answer), {foils:,} with a foil (a wrong answer).", 2)
        if found.joined:
            yield _comment(f"{found.joined} follows {found.named_text} after a blank line, where it is not empty.", 2)
        yield _line("  - file", self._path(str(chosen.file)), "")
        if chosen.columns:
            yield _line("    columns", dict(chosen.columns), "which column holds what")
        domains = dict.fromkeys(prompt.domain for prompt in found.prompts)
        if [*domains] == [chosen.domain or chosen.name]:
            yield _line("    domain", chosen.domain or chosen.name, "what they are about: results are given by domain")
        else:
            yield _comment(f"{len(domains)} domains, by row; results are given by domain.", 4)
        if n > MOST and chosen.limit is None:
            yield _line("    limit", MOST, f"the first {MOST} of {n:,} rows; remove the line to read all")
        elif chosen.limit is not None:
            yield _line("    limit", chosen.limit, "only the first rows")
        if chosen.chat is not None and not found.turns:
            said = chosen.chat.model_dump(exclude_none=True, exclude_defaults=True) or True
            yield _line("    chat", said, "through the chat template")
        elif self.chat is None:
            yield from self._separated(found)
        elif found.turns:
            yield _line("    chat", self.chat, "messages go through the chat template" + self._whose)
        elif found.is_asked:
            yield _line("    chat", self.chat, f"through the chat template{self._whose}; false: as plain text")
        else:
            yield from self._separated(found)
            yield _line("    chat", False, f"plain text; {_value(self.chat)}: through the chat template{self._whose}")

    def _separated(self, found: Found) -> Iterable[str]:
        if found.runs_together and found.chosen.separator is None:
            yield _line("    separator", " ", "goes between text and target if there is no space")

    @property
    def _whose(self) -> str:
        return " of the tuned model, for both" if self.chat == "tuned" else ""

    def _work(self) -> Iterable[str]:
        yield "# What is measured in both models. A line that is removed is not measured."
        yield "measure:"
        for name, words in _MEASURES.items():
            yield _line(f"  - {name}", None, words)
        yield ""
        if self.metric == "kl":
            yield "# There are no targets: both models read what the base writes after each prompt. The line may go."
            yield f"generate: {{tokens: {_CONTINUED}, from: base}}"
            yield ""
        yield "# Which components cause the change. This takes longest; remove these lines to skip it."
        yield "attribute:"
        yield "  # graft puts one tuned component into the base; revert takes one back out of the tuned model"
        yield _line("  methods", ["path", "graft", "revert"], "path divides the whole change among them")
        yield _line("  metric", self.metric, _METRICS[self.metric])
        yield ""
        yield _line("seed", 0, "the same seed gives the same tables")

    def _path(self, path: str) -> str:
        """A path of the disk as seen from the suite; a hub id, and a path that was given whole, as they are."""
        if os.path.isabs(path) or not os.path.exists(os.path.expanduser(path)) or path.startswith("~"):
            return path
        return os.path.relpath(path, self.folder)


def _share(having: Iterable[bool]) -> str:
    """How many of some have something, in a word."""
    found = list(having)
    return "all" if all(found) else f"{sum(found):,}" if any(found) else "none"


def _line(key: str, value: Any, words: str) -> str:
    line = key if value is None else f"{key}: {_value(value)}"
    return f"{line.ljust(_AT - 1)} # {words}" if words else line


def _value(value: Any) -> str:
    """A value as YAML, on one line, wherever it may stand."""
    plain = value if isinstance(value, Mapping | list) else [value]
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**9).strip()
    return text if plain is value else text[1:-1]


def _comment(text: str, indent: int = 0) -> str:
    """A comment of as many lines as it needs."""
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH - indent, break_on_hyphens=False)
    return "\n".join(f"{' ' * indent}# {line}" for line in lines)
