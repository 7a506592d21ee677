"""Every instruction's check, on a response that follows it and one that does not."""

import pytest

from tv.errors import InputError
from tv.evaluation.instructions import CHECKS, follows, follows_loosely, process_results, verify

CASES: list[tuple[str, dict[str, object], str, str]] = [
    ("keywords:existence", {"keywords": ["lamp", "Dark"]}, "A lamp in the dark.", "Lamps in the dark."),
    ("keywords:frequency", {"keyword": "no", "frequency": 2, "relation": "at least"}, "No, no!", "No, nothing."),
    ("keywords:frequency", {"keyword": "no", "frequency": 2, "relation": "less than"}, "No way.", "no no"),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", "The cat."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": "at least"},
        "Even elephants",
        "An owl here",
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        "One here. Two there!",
        'It said "go." Then it went. And so on.',
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "don't go", "do not go"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First this.\n\nThen that.",
        "Then this.\n\nThat.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "Dear [name], of [town]", "Dear [name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.P.S see you", "Bye.\nP.S see you"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n**two**"),
    ("detectable_format:constrained_response", {}, "My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one* and two"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part", "num_sections": 2},
        "Part 1\na\nPart 2\nb",
        "Part 1\na\nPart b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A lamp>>\nIt glows.", "<< >>\nIt glows."),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "What is it?"}, "what is it? A lamp.", "A lamp."),
    ("startend:start_checker", {"start_phrase": "The answer is"}, " The answer is four.", "Four is the answer is"),
    ("startend:end_checker", {"end_phrase": "Any questions?"}, "Done. Any questions?", "Any questions? No."),
    ("startend:quotation", {}, '"A lamp."', 'He said "lamp"'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "at least"},
        "GO now",
        "Go now",
    ),
    ("change_case:english_capital", {}, "GO NOW!", "GO now!"),
    ("change_case:english_lowercase", {}, "go now!", "Go now!"),
    ("punctuation:no_comma", {}, "a and b", "a, b"),
]


@pytest.mark.parametrize(("name", "arguments", "good", "bad"), CASES)
def test_a_check_tells_the_two_apart(name: str, arguments: dict[str, object], good: str, bad: str) -> None:
    assert follows(good, name, arguments | {"of_another": None})
    assert not follows(bad, name, arguments)
    assert not follows(" \n", name, arguments)


def test_every_instruction_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_loosely_a_first_line_a_last_line_and_asterisks_are_forgiven() -> None:
    end = {"end_phrase": "Goodbye."}
    polite = "Sure:\nIt is a lamp. **Goodbye.**\nAnything else?"
    assert not follows(polite, "startend:end_checker", end)
    assert follows_loosely(polite, "startend:end_checker", end)
    assert not follows_loosely("Goodbye. It is a lamp. Truly.", "startend:end_checker", end)
    assert follows_loosely("Sure, here:\na lamp", "punctuation:no_comma", {})
    assert not follows_loosely("Sure, here: a lamp", "punctuation:no_comma", {})


def test_an_item_counts_whole_and_in_part() -> None:
    doc = {
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
        "kwargs": [{"keywords": None}, {}],
    }
    assert process_results(doc, ["no, never"]) == {
        "prompt_strict": 0.0,
        "instruction_strict": 0.5,
        "prompt_loose": 0.0,
        "instruction_loose": 0.5,
    }
    assert process_results(doc, ["Well, yes:\nnever"]) == {
        "prompt_strict": 0.0,
        "instruction_strict": 0.0,
        "prompt_loose": 1.0,
        "instruction_loose": 1.0,
    }


def test_what_cannot_be_checked_is_said() -> None:
    with pytest.raises(InputError, match=r"'language:response_language' cannot be checked here.*keywords:existence"):
        verify("language:response_language")
    with pytest.raises(InputError, match=r"'punctuation:no_comma'.*'letter'"):
        follows("a", "punctuation:no_comma", {"letter": "a"})
    with pytest.raises(InputError, match="relation 'around'"):
        follows("a", "length_constraints:number_words", {"num_words": 1, "relation": "around"})
