"""What stands behind the page: a request is a dict, and so is the reply."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from transformers import PreTrainedModel

from probes.attribution.units import component_name, components
from probes.errors import RunError
from probes.store.run import Run
from probes.viewing.mixing import mixed
from probes.viewing.models import Models, Subject, described
from probes.viewing.reading import (
    Reading,
    divergences,
    lens_divergences,
    likeliest,
    logits_of,
    read,
    relative_changes,
)
from probes.viewing.requests import MOST_TOKENS, Answer, Load, ModelName, Open, Token, read_request
from tv.errors import InputError, first_line
from tv.evaluation.greedy import continue_greedily
from tv.runtime.compute import Compute
from tv.runtime.memory import RELIEF, is_out_of_memory

Found = TypeVar("Found")
#: Tokens that are listed at a place.
_TOP = 5
#: Answers that are kept. Of logits and readings, those of base and tuned model for one text.
_ANSWERS = 64
_PAIR = 2


class Session:
    """Runs whose models are asked, one request at a time.

    Models are loaded on first use, and one lock is around all work on them. A request stops before its next forward
    pass when a newer one of the same pane and kind arrives, or the session closes. Its reply is {"overtaken": true}.

    Args:
        runs: Finished runs.
        compute: Where models compute.
    """

    def __init__(self, runs: Sequence[Run], compute: Compute = Compute()) -> None:
        self._models = Models(runs, compute)
        self._lock = threading.Lock()
        self._newest: dict[tuple[str, str], int] = {}
        self._closed = False
        # While a slider moves, base and tuned model are not asked again.
        self._answers, self._logits, self._readings = _Kept(_ANSWERS), _Kept(_PAIR), _Kept(_PAIR)

    @property
    def runs(self) -> list[Run]:
        """The runs that are open."""
        return self._models.runs

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request.

        Args:
            request: As one of the classes of `probes.viewing.requests` says, with what to do in "do".

        Returns:
            The reply, of values that JSON holds: no NaN, no tensor. {"error": …} says in a line what was wrong with
            the request.
        """
        try:
            return _plain(self._handled(read_request(request)))
        except _Overtaken:
            return {"overtaken": True}
        except InputError as error:
            return {"error": str(error)}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return {"error": f"out of memory ({first_line(error)}); {RELIEF}"}

    def close(self) -> None:
        """Stop what is worked on, and work on nothing more."""
        self._closed = True

    def _handled(self, asked: Open | Load | Answer | Token) -> dict[str, Any]:
        if isinstance(asked, Open):
            return {"runs": [described(run) for run in self.runs]}
        key = asked.pane, asked.do
        number = self._newest[key] = self._newest.get(key, 0) + 1

        def still_wanted() -> None:
            if self._closed or self._newest[key] != number:
                raise _Overtaken

        with self._lock:
            still_wanted()
            began = time.perf_counter()
            subject = self._models.subject(asked.run, asked.tuned)
            if isinstance(asked, Load):
                reply = _loaded(subject)
            elif isinstance(asked, Answer):
                reply = self._answered(subject, asked, still_wanted)
            else:
                reply = self._at_token(subject, asked, still_wanted)
            return {**reply, "seconds": time.perf_counter() - began}

    def _answered(self, subject: Subject, asked: Answer, still_wanted: Callable[[], None]) -> dict[str, Any]:
        text = subject.ids(asked.prompt, asked.form, asked.tokens, MOST_TOKENS)

        def written(model: PreTrainedModel, name: ModelName) -> tuple[int, ...]:
            found = continue_greedily(model, [text], asked.tokens, ends=subject.ends, vocab_size=subject.vocab_size)
            return found[0]

        each = partial(_of_each, subject, asked, still_wanted)
        answers = each(self._answers, (text, asked.tokens), written)
        ids = (*text, *answers.get(asked.follow, answers["tuned"]))
        logits = each(self._logits, ids, lambda model, name: logits_of(model, ids))
        tokenizer = subject.pair.tokenizer
        return {
            "n_text": len(text),
            "ids": list(ids),
            "tokens": _texts(subject, ids),
            "answers": {
                name: {
                    "tokens": _texts(subject, answer),
                    "text": tokenizer.decode(answer),
                    "ended": bool(answer) and answer[-1] in subject.ends,
                    "differs": None if name == "base" else _first_difference(answers["base"], answer),
                }
                for name, answer in answers.items()
            },
            "kl": {name: divergences(logits["base"], of).tolist() for name, of in logits.items() if name != "base"},
        }

    def _at_token(self, subject: Subject, asked: Token, still_wanted: Callable[[], None]) -> dict[str, Any]:
        if asked.pos >= len(asked.ids) or max(asked.ids) >= subject.vocab_size:
            raise RunError(
                f"token {asked.pos}: the text has {len(asked.ids)} tokens, counted from 0, of the vocabulary"
            )
        if asked.pos >= subject.pair.architecture.context:
            raise RunError(f"token {asked.pos}: the models take {subject.pair.architecture.context} tokens")
        ids, flows = tuple(asked.ids[: asked.pos + 1]), subject.pair.flows

        def seen(model: PreTrainedModel, name: ModelName) -> Reading:
            return read(subject.pair, model, flows[1] if name == "tuned" else flows[0], ids)

        readings = _of_each(subject, asked, still_wanted, self._readings, ids, seen)
        base = readings["base"]
        others = {name: reading for name, reading in readings.items() if name != "base"}
        return {
            "pos": asked.pos,
            "top": {name: _listed(subject, reading.logits) for name, reading in readings.items()},
            "lens": {
                name: [_listed(subject, depth, 1)[0] for depth in reading.lens] for name, reading in readings.items()
            },
            "lens_kl": {name: lens_divergences(base, reading) for name, reading in others.items()},
            "changes": {
                name: [
                    {"name": component_name(*place), "layer": place[0], "component": place[1], "change": change}
                    for place, change in relative_changes(base, reading).items()
                ]
                for name, reading in others.items()
            },
        }


class _Overtaken(Exception):
    """A newer request of the same kind is there."""


class _Kept(dict[tuple[Any, ...], Any]):
    """The last few results, by what they are of."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def of(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What is kept under a key, or made now; it counts as the newest."""
        found = self.pop(key) if key in self else make()
        while len(self) >= self._most:
            del self[next(iter(self))]
        self[key] = found
        return found


def _names(scales: Mapping[str, float]) -> list[ModelName]:
    """The models that are asked: a mix only where something is mixed."""
    return ["base", "tuned", "mixed"] if any(scales.values()) else ["base", "tuned"]


def _of_each(
    subject: Subject,
    asked: Answer | Token,
    still_wanted: Callable[[], None],
    kept: _Kept,
    about: tuple[Any, ...],
    make: Callable[[PreTrainedModel, ModelName], Found],
) -> dict[ModelName, Found]:
    """What `make` finds of every model that is asked; that of base and tuned is kept, by what it is about."""

    def made(name: ModelName) -> Found:
        with _model(subject, name, asked.scales) as model:
            hook = model.register_forward_pre_hook(lambda *_: still_wanted())
            try:
                return make(model, name)
            finally:
                hook.remove()

    return {
        name: made(name) if name == "mixed" else kept.of((asked.run, asked.tuned, name, about), partial(made, name))
        for name in _names(asked.scales)
    }


@contextmanager
def _model(subject: Subject, name: ModelName, scales: Mapping[str, float]) -> Iterator[PreTrainedModel]:
    if name != "mixed":
        yield subject.pair.base if name == "base" else subject.pair.tuned
        return
    with mixed(subject.pair, scales) as model:
        yield model


def _loaded(subject: Subject) -> dict[str, Any]:
    architecture = subject.pair.architecture
    return {
        "components": [
            {"name": str(unit), "layer": unit.layer, "component": unit.component} for unit in components(architecture)
        ],
        "n_layers": architecture.n_layers,
        "context": architecture.context,
        "forms": list(subject.forms),
        "prompts": subject.offered(),
        "floors": subject.floors,
    }


def _listed(subject: Subject, logits: Any, n: int = _TOP) -> list[dict[str, Any]]:
    ids, probs = likeliest(logits, n)
    texts = _texts(subject, ids.tolist())
    return [{"token": text, "prob": prob} for text, prob in zip(texts, probs.tolist(), strict=True)]


def _texts(subject: Subject, ids: Sequence[int]) -> list[str]:
    """Each token by itself; of a character that several make, the replacement character."""
    return [str(subject.pair.tokenizer.decode([i])) for i in ids]


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The place of the first token that is not the same; None where there is none."""
    if tuple(one) == tuple(other):
        return None
    same = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(same, min(len(one), len(other)))


def _plain(value: Any) -> Any:
    """The value with None in place of what JSON does not have: NaN and infinities."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
