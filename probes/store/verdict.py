"""A run's verdict: three sentences, examples and the largest effects of every tuned model, in a file of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from probes.errors import RunError
from probes.store import remote
from probes.store.digests import FILES, file_digest
from probes.store.manifest import write_manifest
from probes.store.remote import Place
from tv.runtime.atomic import replacing

#: The file in a run that holds its verdict.
VERDICT = "verdict.json"


@dataclass(frozen=True)
class Example:
    """A prompt that the two models answer differently.

    Attributes:
        outcome: "gained" (only the tuned model is right), "lost" (only the base is) or "differs" (no target says).
        prompt_id: The prompt's id.
        domain: Its domain.
        text: What the models read; of a conversation its last message.
        target: The right answer; empty where there is none.
        base: What the base writes by greedy decoding; where the run has no such text, its first choices up to the first
            that leaves the target.
        tuned: The tuned model's.
    """

    outcome: Literal["gained", "lost", "differs"]
    prompt_id: str
    domain: str
    text: str
    target: str
    base: str
    tuned: str


@dataclass(frozen=True)
class Effect:
    """The effect of one component, which is clear of 0.

    Attributes:
        component: The component, such as "attn 0".
        method: The method that measured it.
        metric: What it is measured on, in words; `effect`, `lo` and `hi` are in its unit.
        domain: The prompts' domain, or "all".
        n: Prompts, or clusters of them.
        effect: How far the metric moves towards the tuned model.
        lo: The lower end of the 95 % interval that holds for all components and methods at once.
        hi: Its upper end.
    """

    component: str
    method: str
    metric: str
    domain: str
    n: int
    effect: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Verdict:
    """What fine-tuning did, in short.

    Attributes:
        tuned: The tuned model's name.
        trained: What was trained, where the tuned model is an adapter; else empty.
        learnt: What got better, in a sentence.
        lost: What got worse.
        where: Which components carry the change, and which weights moved most.
        examples: At most three answers that were gained and three that were lost; without targets, three that differ.
        cannot_show: What must not be concluded from the run.
        largest: The five largest effects of single components by one method, of those that are clear of 0.

    Examples:
        >>> print(Verdict("medical", "On medical prompts exact match rises.", "Nothing.", "In all layers."))
        Learnt: On medical prompts exact match rises.
        Lost: Nothing.
        Where: In all layers.
    """

    tuned: str
    learnt: str
    lost: str
    where: str
    trained: str = ""
    examples: tuple[Example, ...] = ()
    cannot_show: tuple[str, ...] = ()
    largest: tuple[Effect, ...] = ()

    @property
    def sentences(self) -> dict[str, str]:
        """The sentences by their labels."""
        told = {"Trained": self.trained, "Learnt": self.learnt, "Lost": self.lost, "Where": self.where}
        return {label: text for label, text in told.items() if text}

    def __str__(self) -> str:
        return "\n".join(f"{label}: {text}" for label, text in self.sentences.items())


_VERDICTS = TypeAdapter(dict[str, Verdict])


def write_verdict(directory: Path, manifest: dict[str, Any], verdict: Mapping[str, Verdict]) -> None:
    """Write the verdict of every tuned model into a run, and list the file in its manifest."""
    told = {name: asdict(one) for name, one in verdict.items()}
    with replacing(directory / VERDICT, RunError) as temporary:
        temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    if FILES in manifest:  # an older run lists no files
        manifest[FILES] = {**manifest[FILES], VERDICT: file_digest(directory / VERDICT)}
        write_manifest(directory, manifest)


def read_verdict(place: Place) -> dict[str, Verdict]:
    """The verdict of every tuned model of a run. Raises RunError where there is none, or one that cannot be read."""
    content = remote.content_of(place / VERDICT)
    if content is None:
        raise RunError(f"{place}: it holds no verdict of its tables; `probes report` writes one")
    try:
        return _VERDICTS.validate_json(content)
    except ValidationError:
        raise RunError(f"{place / VERDICT}: not a verdict; write it again with `probes report`") from None
