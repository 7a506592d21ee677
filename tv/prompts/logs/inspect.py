"""Logs of Inspect: `.eval` archives, a member for every sample and epoch, and the older `.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from tv.errors import PromptError
from tv.prompts.logs.item import Item, Log, fields_of, mapping, number, sequence
from tv.prompts.logs.zipped import Members

#: What graders say, as Inspect counts it.
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
_MOST = 2**31  # bytes of a log in one JSON
_LETTERED = "ANSWER: $LETTER"  # how Inspect asks for a choice


def is_log(content: Any) -> bool:
    """Whether a JSON file's content is a log of Inspect."""
    return isinstance(content, Mapping) and isinstance(content.get("eval"), Mapping) and "version" in content


def read_eval(path: Path) -> Log:
    """The items of an `.eval` archive. Raises PromptError for what is none."""
    with Members(path) as members:
        head = next((name for name in ("header.json", "_journal/start.json") if name in members.names), None)
        if head is None:
            raise PromptError(f"{path}: not an Inspect log: the archive has no header.json")
        samples = [name for name in members.names if name.startswith("samples/") and name.endswith(".json")]
        each = ((f"{path}: {name}", _json(members.read(name), f"{path}: {name}")) for name in samples)
        return _log(path, _json(members.read(head), f"{path}: {head}"), each)


def read_json(path: Path) -> Log:
    """The items of a log that is one JSON. Raises PromptError for what is none."""
    try:
        if path.stat().st_size > _MOST:
            raise PromptError(f"{path}: {path.stat().st_size:,} bytes; convert it: inspect log convert --to eval")
        content = _json(path.read_bytes(), str(path))
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not is_log(content):
        raise PromptError(f"{path}: not an Inspect log: it has version, eval and samples")
    samples = content.get("samples")
    if not isinstance(samples, list):
        raise PromptError(f"{path}: a log without samples; run the evaluation with log_samples")
    return _log(path, content, ((f"{path}: sample {i}", sample) for i, sample in enumerate(samples, 1)))


def _json(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place}: not valid JSON: {getattr(error, 'msg', error)}; is the file whole?") from None


def _log(path: Path, head: Any, samples: Iterator[tuple[str, Any]]) -> Log:
    spec = head.get("eval") if isinstance(head, dict) else None
    if not isinstance(spec, dict) or not isinstance(spec.get("task"), str):
        raise PromptError(f"{path}: not an Inspect log: its header names no task")
    items, errors, odd, seen = [], 0, dict[str, int](), set[tuple[str, int]]()
    for place, sample in samples:
        if not isinstance(sample, dict) or "id" not in sample or not isinstance(sample.get("input"), str | list):
            raise PromptError(f"{place}: not a sample of Inspect, which has id, epoch and input")
        if sample.get("error") is not None and not sample.get("scores"):
            errors += 1
        else:
            item = _item(spec["task"], sample, place, odd)
            if (item.id, item.draw) in seen:
                raise PromptError(f"{place}: sample {item.id}, epoch {item.draw} stands twice")
            seen.add((item.id, item.draw))
            items.append(item)
    notes = [f"{path}: {errors} samples ended in an error and have no score; they are left out"] if errors else []
    notes += [f"{path}: {name} is no number in {n} samples, and is left out there" for name, n in odd.items()]
    status = head.get("status", "success")
    if status != "success":
        notes.append(f"{path}: the evaluation's status is {status}: it holds what was done until then")
    return Log(str(path), str(spec.get("model", "")), spec["task"], str(spec.get("created", "")), items, tuple(notes))


def _item(task: str, sample: Mapping[str, Any], place: str, odd: dict[str, int]) -> Item:
    attached = mapping(sample.get("attachments"))
    turns = _turns(sample, attached)
    words = [_words(turn.get("content"), attached) for turn in turns]
    whole = all(text is not None for text in words) and bool(turns)
    messages = tuple(
        {"role": str(turn.get("role", "user")), "content": text or ""} for turn, text in zip(turns, words, strict=True)
    )
    text = messages[-1]["content"] if whole and messages[-1]["role"] == "user" else None
    target, foil = _answers(sample, text or "")
    return Item(
        task,
        str(sample["id"]),
        int(number(sample.get("epoch", 1)) or 1),
        str(sample["id"]),
        json.dumps([[turn.get("role"), _bare(turn.get("content"), attached)] for turn in turns], sort_keys=True),
        text,
        target,
        foil,
        _response(sample),
        _scores(sample, place, odd),
        {**fields_of(sample.get("metadata")), "id": str(sample["id"])},
        messages if whole else (),
    )


def _turns(sample: Mapping[str, Any], attached: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The turns before the model's first answer; without any, what the sample asks."""
    turns: list[Mapping[str, Any]] = []
    for turn in sequence(sample.get("messages")):
        if not isinstance(turn, dict) or (turn.get("role") == "assistant" and turn.get("source") != "input"):
            break
        turns.append(turn)
    asked = sample["input"]
    if not turns and isinstance(asked, str):
        return [{"role": "user", "content": asked}]
    return turns or [turn for turn in asked if isinstance(turn, dict)]


def _words(content: Any, attached: Mapping[str, Any]) -> str | None:
    """A turn's content as text; None where it holds more than text."""
    if isinstance(content, list):
        parts = [_words(part.get("text") if isinstance(part, dict) else part, attached) for part in content]
        return None if any(part is None for part in parts) else "\n".join(part or "" for part in parts)
    if not isinstance(content, str):
        return None
    for name in re.findall(r"attachment://([0-9a-f]{8,64})", content):
        if isinstance(attached.get(name), str):
            content = content.replace(f"attachment://{name}", attached[name])
    return content


def _bare(content: Any, attached: Mapping[str, Any]) -> Any:
    """A turn's content without what differs from run to run, such as ids."""
    found = _words(content, attached)
    return found if found is not None else re.sub(r'"id": *"[^"]*"', "", json.dumps(content, sort_keys=True))


def _answers(sample: Mapping[str, Any], text: str) -> tuple[str | None, str | None]:
    """The target, and a wrong choice where there are choices: letters, as Inspect asks for them."""
    target = sample.get("target")
    target = target[0] if isinstance(target, list) and target else target
    if not isinstance(target, str) or not target:
        return None, None
    choices = sample.get("choices")
    letters = list(ascii_uppercase[: len(choices)]) if isinstance(choices, list) else []
    if target not in letters:
        return target, None
    wrong = next((letter for letter in letters if letter != target), None)
    form = _LETTERED.replace("$LETTER", "{}") if _LETTERED in text else "{}"
    return form.format(target), None if wrong is None else form.format(wrong)


def _response(sample: Mapping[str, Any]) -> str | None:
    said = mapping(sample.get("output")).get("completion")
    return said if isinstance(said, str) else None


def _scores(sample: Mapping[str, Any], place: str, odd: dict[str, int]) -> dict[str, float]:
    """A number for every scorer, and for every key of those that give several."""
    found: dict[str, float] = {}
    scores = sample.get("scores") or {}
    if not isinstance(scores, dict):
        raise PromptError(f"{place}: its scores are no mapping by scorer")
    for scorer, score in scores.items():
        value = score.get("value") if isinstance(score, dict) else score
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        named = [(f"{scorer}/{key}", part) for key, part in parts] if parts is not None else [(str(scorer), value)]
        for name, part in named:
            graded = _GRADES.get(part) if isinstance(part, str) else None
            value = number(part) if graded is None else graded
            if value is None:
                odd[name] = odd.get(name, 0) + 1
            else:
                found[name] = value
    return found
