"""Instructions that a program can verify, by the names of IFEval, and whether a response follows them.

Source: arXiv 2311.07911 (Zhou et al. 2023), table 1 and §2.2 (strict and loose). The checks are ours, written from the
paper, and need no download: sentences and words are split at punctuation and spaces, so a count may
differ by one from a tokenizer's. Which language a response is in cannot be checked. `startend:start_checker` is ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tv.errors import InputError, choices


def follows(response: str, instruction: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a response follows one instruction; an empty one follows none. Raises InputError for an unknown one."""
    check = _check(instruction)
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return bool(response.strip()) and check(response, **given)
    except TypeError as error:
        raise InputError(f"instruction {instruction!r}: arguments {sorted(given)} do not fit it: {error}") from None


def follows_loosely(response: str, instruction: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the response follows it without its first line, its last, both or none, with or without asterisks."""
    lines = response.split("\n")
    cuts = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = ["\n".join(cut).strip() for cut in cuts]
    return any(
        follows(text, instruction, arguments) for text in [response, *texts, *(t.replace("*", "") for t in texts)]
    )


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """What lm-evaluation-harness logs of one item: all instructions followed, and the share of them; strict and loose.

    `doc` has IFEval's columns `instruction_id_list` and `kwargs`, one of the latter an instruction.
    """
    asked = list(zip(doc["instruction_id_list"], doc["kwargs"], strict=True))
    found: dict[str, float] = {}
    for manner, check in (("strict", follows), ("loose", follows_loosely)):
        passed = [check(results[0], name, arguments) for name, arguments in asked]
        found |= {f"prompt_{manner}": float(all(passed)), f"instruction_{manner}": sum(passed) / len(passed)}
    return found


def verify(name: str) -> None:
    """Raise InputError for an instruction that cannot be checked."""
    _check(name)


def _check(name: str) -> Callable[..., bool]:
    if name not in CHECKS:
        raise InputError(f"instruction {name!r} cannot be checked here{choices(name, CHECKS)}")
    return CHECKS[name]


def _compares(count: int, relation: str, wanted: int) -> bool:
    if relation not in ("at least", "less than"):
        raise InputError(f"relation {relation!r}: at least or less than")
    return count >= wanted if relation == "at least" else count < wanted


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])[\"'”’)]*\s+", text.strip()) if re.search(r"\w", part)]


def _count(text: str, word: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def _letters(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compares(response.lower().count(letter.lower()), let_relation, let_frequency)


def _paragraphs(response: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", response)]
    inner = parts[1:-1] if len(parts) > 1 else []
    return all(inner) and sum(map(bool, parts)) == num_paragraphs


def _first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    parts = [part.strip() for part in re.split(r"\n\n+", response) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    words = _words(parts[nth_paragraph - 1])
    return bool(words) and words[0].lower() == first_word.lower()


def _postscript(response: str, postscript_marker: str) -> bool:
    letters = r"\s*".join(re.escape(letter) for letter in postscript_marker.strip() if not letter.isspace())
    return re.search(rf"^\s*{letters}", response, re.IGNORECASE | re.MULTILINE) is not None


def _bullets(response: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*\n]|-).*$", response, re.MULTILINE)) == num_bullets


def _highlights(response: str, num_highlights: int) -> bool:
    return len(re.findall(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|\*[^\n*]*[^\s*][^\n*]*\*", response)) >= num_highlights


def _sections(response: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"\b{re.escape(section_spliter.strip())}\s*\d+", response)) >= num_sections


def _is_json(response: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", response.strip(), re.IGNORECASE | re.DOTALL)
    try:
        json.loads(fenced[1] if fenced else response)
    except ValueError:
        return False
    return True


def _two_responses(response: str) -> bool:
    parts = [part.strip() for part in response.split("******")]
    full = [part for part in parts if part]
    return len(full) == 2 and full[0] != full[1] and all(parts[1:-1])


def _capital_words(response: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compares(sum(word.isupper() for word in _words(response)), capital_relation, capital_frequency)


#: Instruction → response, its arguments → whether it is followed.
CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": lambda response, keywords: all(_count(response, word) for word in keywords),
    "keywords:frequency": lambda response, keyword, frequency, relation: _compares(
        _count(response, keyword), relation, frequency
    ),
    "keywords:forbidden_words": lambda response, forbidden_words: not any(_count(response, w) for w in forbidden_words),
    "keywords:letter_frequency": _letters,
    "length_constraints:number_sentences": lambda response, num_sentences, relation: _compares(
        len(_sentences(response)), relation, num_sentences
    ),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_words": lambda response, num_words, relation: _compares(
        len(_words(response)), relation, num_words
    ),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda response, num_placeholders: (
        len(re.findall(r"\[[^\[\]]+\]", response)) >= num_placeholders
    ),
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:constrained_response": lambda response: any(
        f"My answer is {answer}." in response for answer in ("yes", "no", "maybe")
    ),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:json_format": _is_json,
    "detectable_format:title": lambda response: re.search(r"<<[^<>\n]*[^<>\s][^<>\n]*>>", response) is not None,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": lambda response, prompt_to_repeat: (
        response.strip().lower().startswith(prompt_to_repeat.strip().lower())
    ),
    "startend:start_checker": lambda response, start_phrase: (
        response.strip().lower().startswith(start_phrase.strip().lower())
    ),
    "startend:end_checker": lambda response, end_phrase: (
        response.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    ),
    "startend:quotation": lambda response: re.fullmatch(r'".+"', response.strip(), re.DOTALL) is not None,
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": lambda response: response.isupper(),
    "change_case:english_lowercase": lambda response: response.islower(),
    "punctuation:no_comma": lambda response: "," not in response,
}
