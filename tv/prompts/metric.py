"""Behaviour metrics: one number per prompt from one forward pass, each registered where it is defined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tv.prompts.sets import Prompt
from tv.runtime.registry import Registry

if TYPE_CHECKING:  # a suite is checked by the names of metrics alone, before torch is there
    from jaxtyping import Float
    from torch import Tensor

    from tv.prompts.encoding import Encoded

#: The metric of one prompt from its logits, as a tensor of one number.
Reading: TypeAlias = 'Callable[[Float[Tensor, "pos vocab"], Encoded], Float[Tensor, ""]]'
#: What a prompt must have: nothing but its text, a target, or a target and a foil.
Needs = Literal["text", "target", "foil"]
#: What the name of a metric begins with that another evaluation logged.
LOGGED = "logged:"


@dataclass(frozen=True)
class BehaviourMetric:
    """A registered metric, and what tables, reports and attributions need to know about it."""

    name: str
    of: Reading
    words: str  # its label for readers: "logit difference"
    unit: str  # "nats"; "share of prompts"
    better: bool | None  # whether more of it is better; None: neither
    needs: Needs = "target"
    smooth: bool = True  # whether its gradient is meaningful
    reads: Callable[[Encoded], Sequence[int]] | None = None  # the positions it looks at; None: any
    by_position: bool = False  # whether it only takes logits at those out: then it need not be given any others
    matters: float = 0.0  # the smallest mean change that matters, in its unit; 0: any does

    def has(self, item: Encoded) -> bool:
        """Whether a prompt has what it needs."""
        return {"text": True, "target": len(item.scored) > 0, "foil": item.foil_id >= 0}[self.needs]

    def can_read(self, prompt: Prompt) -> bool:
        """The same of a prompt that is not encoded yet."""
        return {"text": True, "target": prompt.target is not None, "foil": prompt.foil is not None}[self.needs]

    @property
    def needed(self) -> str:
        """What a prompt must have, in words."""
        return {"text": "a text", "target": "a target", "foil": "a target and a foil"}[self.needs]


METRICS: Registry[BehaviourMetric] = Registry("behaviour metric", "tv.prompts.metrics", by="metric")


def metric(name: str, **said: Any) -> Callable[[Reading], Reading]:
    """A decorator: the function becomes the behaviour metric of this name.

    Args:
        name: What tables, suites and command lines call it.
        said: The fields of `BehaviourMetric`; `words`, `unit` and `better` are needed.

    Returns:
        A decorator that leaves the function as it is. It takes the logits of one prompt (pos, vocab), right-padded, and
        the prompt as encoded, and is called on prompts that have what the metric needs.

    Examples:
        >>> METRICS["logit_diff"].words, METRICS["logit_diff"].unit
        ('logit difference', 'logits, target − foil')
    """

    def decorate(of: Reading) -> Reading:
        METRICS.add(name, BehaviourMetric(name, of, **said), of.__module__)
        return of

    return decorate


def answering(item: Encoded) -> list[int]:
    """The positions at which a prompt's answer is read: where target and foil part, before the target's tokens."""
    return [item.answer_pos, *item.scored]


def parting(item: Encoded) -> list[int]:
    """The position at which target and foil part."""
    return [item.answer_pos]
