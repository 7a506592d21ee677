"""Samples of lm-evaluation-harness (`--log_samples`): a JSON line for every document and filter."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tv.errors import PromptError
from tv.prompts.logs.item import Item, Log, fields_of, number, sequence

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<made>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl?")
_LONGEST = 2**26  # bytes of a line
#: Metrics of whole texts that are kept as (log p, size): name there → name here, and the unit's size in nats.
_ROLLING = {
    "word_perplexity": ("nll_word", 1.0),
    "byte_perplexity": ("nll_byte", 1.0),
    "bits_per_byte": ("bits_per_byte", math.log(2)),
}


def is_samples(first: Any) -> bool:
    """Whether a file whose first row is this holds samples of the harness."""
    return isinstance(first, Mapping) and {"doc_id", "doc", "arguments"} <= first.keys()


def read_samples(path: Path) -> Log:
    """The items of one file. Raises PromptError, with the line, for a file that does not hold samples."""
    named = _NAME.fullmatch(path.name)
    task = named["task"] if named else path.stem
    rows: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for place, row in _rows(path):
        rows.setdefault(str(row["doc_id"]), []).append((place, row))
    several = len({str(row.get("filter")) for block in rows.values() for _, row in block}) > 1
    odd: dict[str, int] = {}
    items = [_item(task, block, several, odd) for block in rows.values()]
    notes = [f"{path}: {name} is no number in {n} of its rows, and is left out there" for name, n in odd.items()]
    return Log(str(path), path.resolve().parent.name, task, named["made"] if named else "", items, tuple(notes))


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_LONGEST + 1):
                number += 1
                place = f"{path}: line {number}"
                if len(line) > _LONGEST:
                    raise PromptError(f"{place}: longer than {_LONGEST:,} bytes, which no sample is")
                if line.strip():
                    yield place, _sample(line, place)
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror or error}") from None


def _sample(line: bytes, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place}: not valid JSON: {getattr(error, 'msg', error)}; is the file whole?") from None
    if not is_samples(row) or not isinstance(row["doc"], dict):
        raise PromptError(f"{place}: not a sample of lm-evaluation-harness, which has doc_id, doc and arguments")
    return row


def _item(task: str, block: Sequence[tuple[str, Mapping[str, Any]]], several: bool, odd: dict[str, int]) -> Item:
    """One document: what is asked is alike in the rows of all filters."""
    place, row = block[0]
    asked, scores = _asked(row, place), {}
    for where, each in block:
        for metric in [str(name) for name in sequence(each.get("metrics"))] or _unnamed(each):
            if metric not in each:
                raise PromptError(f"{where}: names the metric {metric!r} and has no value of it")
            label, value = _score(metric, each[metric])
            label = f"{label}, {each.get('filter')}" if several else label
            if label in scores:
                raise PromptError(f"{where}: item {row['doc_id']} stands twice; keep the samples of one evaluation")
            if value is None:
                odd[label] = odd.get(label, 0) + 1
            else:
                scores[label] = value
    doc = row["doc"]
    key = row.get("doc_hash") or hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest()
    return Item(
        task,
        str(row["doc_id"]),
        1,
        str(key),
        json.dumps(row["arguments"], sort_keys=True),
        asked.text,
        asked.target,
        asked.foil,
        asked.response,
        scores,
        fields_of(doc),
        spaced=asked.spaced,
    )


class _Asked(NamedTuple):
    text: str | None
    target: str | None
    foil: str | None
    response: str | None
    spaced: bool


def _asked(row: Mapping[str, Any], place: str) -> _Asked:
    """What a document asks: choices by their likelihood, a text to write, or one to read."""
    arguments = _arguments(row["arguments"], place)
    responses = sequence(row.get("resps")) or sequence(row.get("filtered_resps"))
    continuations = [part[1] if len(part) > 1 else None for part in arguments]
    if len(arguments) > 1 and all(isinstance(text, str) for text in continuations):
        return _of_choices(row, arguments, responses)
    first = arguments[0]
    if len(first) > 1 and isinstance(first[1], str):  # the likelihood of one continuation
        return _Asked(first[0] or None, first[1], None, None, True)
    said = _first_text(row.get("filtered_resps")) or _first_text(responses)
    target = None if len(first) < 2 else _one(row.get("target"))
    return _Asked(first[0] or None, target, None, said, False)


def _of_choices(row: Mapping[str, Any], arguments: Sequence[Sequence[Any]], responses: Sequence[Any]) -> _Asked:
    """A prompt and its choices; where a task asks for likelihoods without the prompt too, these come after."""
    half = len(arguments) // 2
    if len(arguments) % 2 == 0 and not any(part[0] for part in arguments[half:]) and arguments[0][0]:
        arguments = arguments[:half]
    right, logs = _right(row, arguments), _logs(responses, len(arguments))
    best = max(range(len(arguments)), key=lambda i: logs[i]) if logs else None
    response = None if best is None else str(arguments[best][1])
    if right is None:
        return _Asked(arguments[0][0], None, None, response, True)
    text, target = arguments[right][0], arguments[right][1]
    wrong = [i for i, part in enumerate(arguments) if part[0] == text and part[1] != target]
    wrong.sort(key=lambda i: -logs[i] if logs else 0)
    return _Asked(text, target, arguments[wrong[0]][1] if wrong else None, response, True)


def _arguments(given: Any, place: str) -> list[list[Any]]:
    """(context, continuation or settings) of every request; older logs have lists in place of numbered keys."""
    requests = list(given.values()) if isinstance(given, dict) else given
    if isinstance(requests, list) and requests:
        parts = [list(part.values()) if isinstance(part, dict) else part for part in requests]
        if all(isinstance(part, list) and part and isinstance(part[0], str) for part in parts):
            return parts
    raise PromptError(f"{place}: its arguments are no requests of lm-evaluation-harness")


def _right(row: Mapping[str, Any], arguments: Sequence[Sequence[Any]]) -> int | None:
    """Which choice is right: its number, the first of several, or its text."""
    target = _one(row.get("target"))
    if target is None:
        return None
    if target.strip().isdigit() and int(target) < len(arguments):
        return int(target)
    return next((i for i, part in enumerate(arguments) if str(part[1]).strip() == target.strip()), None)


def _one(target: Any) -> str | None:
    """A target as text: the first of a list, which the harness writes as Python does."""
    if isinstance(target, str) and target[:1] == "[" and target[-1:] == "]":
        try:
            target = ast.literal_eval(target)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return str(target)
    if isinstance(target, list):
        target = target[0] if target else None
    return None if target is None or str(target) == "" else str(target)


def _logs(responses: Sequence[Any], n: int) -> list[float]:
    """The log-likelihood of every choice; none where the log has no numbers."""
    found = []
    for response in responses[:n]:
        while isinstance(response, list) and response:
            response = response[0]
        value = number(response)
        if value is None:
            return []
        found.append(value)
    return found if len(found) == n else []


def _first_text(responses: Any) -> str | None:
    while isinstance(responses, list) and responses:
        responses = responses[0]
    return responses if isinstance(responses, str) else None


def _score(metric: str, value: Any) -> tuple[str, float | None]:
    """The metric's name, and its value of one item; perplexities are kept as (log p, size)."""
    if metric in _ROLLING:
        pair = value if isinstance(value, list) and len(value) == 2 else [None, None]
        total, size = number(pair[0]), number(pair[1])
        label, unit = _ROLLING[metric]
        return label, None if total is None or not size else -total / size / unit
    if isinstance(value, list):
        parts = [number(part) for part in value]
        known = [part for part in parts if part is not None]
        return metric, sum(known) / len(known) if known and len(known) == len(parts) else None
    return metric, number(value)


def _unnamed(row: Mapping[str, Any]) -> list[str]:
    """The metrics of a row that does not list them: what stands beside what every sample has."""
    known = {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
    return [name for name in row if name not in known and not name.endswith("_hash")]
