"""The pairs of several runs, each loaded when it is first asked for; the last two stay in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from probes.capture.loading import Pairs
from probes.capture.pair import Pair
from probes.errors import RunError
from probes.job.further import reopened
from probes.store.manifest import suite_name
from probes.store.prompts import prompts_of
from probes.store.run import Run
from tv.architecture.trunk import ends_of
from tv.errors import PromptError
from tv.prompts.conversation import Conversation, last_text
from tv.prompts.encoding import encode
from tv.prompts.sets import Chat, Prompt
from tv.runtime.common_rows import common_rows
from tv.runtime.compute import Compute

#: Pairs that stay in memory: two panes show two.
_KEPT = 2
#: Prompts of a run that a page offers.
_OFFERED = 500
PLAIN = "plain text"


@dataclass(frozen=True)
class Subject:
    """A run, one of its tuned models, and how their prompts are written."""

    run: Run
    tuned: str
    pairs: Pairs
    pair: Pair

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Those of the run."""
        return prompts_of(self.run)

    @cached_property
    def forms(self) -> dict[str, Chat | None]:
        """The ways in which the run's prompts are written, by name; None is the text as it is. The run's own first."""
        forms: dict[str, Chat | None] = {}
        for chosen in self.pairs.suite.prompts:
            if chosen.chat not in forms.values():
                name = "chat template" if not any(forms.values()) else f"chat template of {chosen.name}"
                forms[PLAIN if chosen.chat is None else name] = chosen.chat
        if not any(forms.values()) and any(prompt.chat is not None for prompt in self.prompts):
            forms = {"chat template": Chat(), **forms}  # files of conversations
        return {**forms, PLAIN: None}

    def offered(self) -> list[dict[str, str]]:
        """Prompts of the run that one turn of a user makes: id, domain, text and form."""
        named = {form: name for name, form in self.forms.items() if form is None}
        chat = next((name for name, form in self.forms.items() if form is not None), PLAIN)
        found = []
        for prompt in self.prompts[:_OFFERED]:
            turns = [] if prompt.chat is None else Conversation.of(prompt.chat).messages
            if sum(turn["role"] not in ("system", "developer") for turn in turns) <= 1:
                text = (last_text(turns) if turns else None) or prompt.text
                form = chat if turns else named[None]
                found.append({"id": prompt.id, "domain": prompt.domain, "text": text, "form": form})
        return found

    def ids(self, text: str, form: str, tokens: int, most: int) -> tuple[int, ...]:
        """A prompt in the tokens that both models read, with room for an answer.

        Raises:
            PromptError: It is empty, has no room, or the chat template refuses it.
            RunError: No prompt of the run is written in this form.
        """
        if not text.strip():
            raise PromptError("the prompt is empty; type something for the models to continue")
        form = form or next(iter(self.forms))
        if form not in self.forms:
            raise RunError(f"form {form!r}: the run has {', '.join(self.forms)}")
        chat = self.forms[form]
        written: str | None = None
        if chat is not None:
            system = [] if chat.system is None else [{"role": "system", "content": chat.system}]
            turns = [*system, {"role": "user", "content": text}]
            written = str(Conversation(turns, dict(chat.options), template=chat.template))
        prompt = Prompt("typed", "this page", "typed", text, chat=written)
        context = min(self.pair.architecture.context, most)
        (encoded,) = encode([prompt], self.pair.tokenizer, sys.maxsize)
        if len(encoded.ids) + tokens > context:
            raise PromptError(
                f"the prompt has {len(encoded.ids)} tokens, the answer up to {tokens}; the models take {context} in "
                "all, so shorten one of them"
            )
        if max(encoded.ids) >= self.vocab_size:
            raise PromptError("the tokenizer has a token that one of the models has no row for; rephrase the prompt")
        return encoded.ids

    @cached_property
    def vocab_size(self) -> int:
        """The tokens that both models have."""
        return len(common_rows(*(ends_of(model)[0].weight for model in self.pair.models))[0])

    @property
    def ends(self) -> Collection[int]:
        """The tokens that end an answer of either model."""
        return self.pairs.ends["base"] | self.pairs.ends[self.tuned]

    @cached_property
    def floors(self) -> dict[str, float | None]:
        """What rounding alone makes on the run's prompts, the base in another precision; None: it was not measured.

        `kl` in nats, over all prompts; `change` the largest mean relative change of a layer.
        """
        tables, kl, change = self.run.tables, None, None
        if "behaviour_floor" in tables:
            rows = self.run.df("behaviour_floor", ["floor"], [("domain", "==", "all"), ("metric", "==", "kl")])
            kl = float(rows.floor.iloc[0]) if len(rows) else None
        if "noise_floor" in tables:
            change = float(self.run.df("noise_floor", ["relative_change"]).relative_change.max())
        return {"kl": kl, "change": change}


class Models:
    """What is open: runs by their place, and pairs that are in memory."""

    def __init__(self, runs: Sequence[Run], compute: Compute) -> None:
        self.runs = list(runs)
        self._compute = replace(compute, stream=False)
        self._kept: dict[tuple[int, str], Subject] = {}

    def subject(self, run: int, tuned: str) -> Subject:
        """A pair of a run. Raises RunError where there is none, or its checkpoints are no longer what the run read."""
        key = run, tuned
        if run >= len(self.runs):
            raise RunError(f"run {run}: {len(self.runs)} are open, counted from 0")
        names = list(self.runs[run].manifest["suite"]["tuned"])
        if tuned not in names:
            raise RunError(f"tuned model {tuned!r}: the run has {', '.join(names)}")
        found = self._kept.pop(key, None) or self._opened(*key)
        self._kept[key] = found  # the newest last
        return found

    def _opened(self, run: int, tuned: str) -> Subject:
        pairs = reopened(self.runs[run], self._compute)
        base = self.runs[run].manifest["checkpoints"]["base"]
        for (other, _), kept in self._kept.items():  # of one base, one copy in memory
            if self.runs[other].manifest["checkpoints"]["base"] == base:
                pairs.lend(kept.pair.base)
                break
        while len(self._kept) >= _KEPT:  # before the next one is loaded
            del self._kept[next(iter(self._kept))]
        return Subject(self.runs[run], tuned, pairs, pairs.pair(tuned))


def described(run: Run) -> dict[str, Any]:
    """A run in the words of a page, nothing of it loaded."""
    sources = {name: _short(str(held["source"])) for name, held in run.manifest["checkpoints"].items()}
    tuned = list(run.manifest["suite"]["tuned"])
    return {"path": _short(str(run.path)), "name": suite_name(run.manifest), "tuned": tuned, "sources": sources}


def _short(path: str) -> str:
    """A path below this folder without what all have in common; another as it is."""
    return path.removeprefix(f"{Path.cwd()}{os.sep}")
