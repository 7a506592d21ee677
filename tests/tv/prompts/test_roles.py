"""Whose words each token is, through templates written in the ways of the families, and where a prompt's own begin."""

import json
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.pairs import build_tokenizer
from tv.errors import PromptError
from tv.prompts.encoding import Encoded, Prompt, encode, encode_continuations, positions
from tv.prompts.roles import text_roles

#: One a family: headers, a default system turn, trimming, the system folded into a user's turn, reasoning cut off,
#: channels, tools in the system turn and their results in the user's.
TEMPLATES = {
    "headers with a default system": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nI am a user's helper.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "headers, trimmed": (
        "{{ bos_token }}{% for m in messages %}<|header|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
        "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|end|>\n\n{% endif %}"
    ),
    "system folded into the last user": (
        "{% set s = namespace(text='') %}{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set s.text = m.content + '\n\n' %}{% elif m.role == 'user' %}"
        "[INST]{{ s.text if loop.last or messages | length < 4 else '' }}{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "system folded into the first user": (
        "{{ bos_token }}{% set turns = messages[1:] if messages[0].role == 'system' else messages %}"
        "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}"
        "{% endif %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ ((messages[0].content + '\n\n' if loop.first and messages[0].role == 'system' else '') + m.content)"
        " | trim }}</turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "system without a header, reasoning cut off": (
        "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% elif m.role == 'assistant' %}"
        "<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
    ),
    "channels": (
        "<|start|>system<|message|>Reasoning: {{ effort or 'low' }}<|end|>{% for m in messages %}"
        "{% if m.role in ('system', 'developer') %}<|start|>developer<|message|># Instructions\n\n{{ m.content }}"
        "<|end|>{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
}
TRIMMING = ("headers, trimmed", "system folded into the first user")
TOOLS = (
    "{% for m in messages %}{% if loop.first %}<s>{{ m.content if m.role == 'system' else '' }}\n"
    "Tools: {{ tools | tojson }}</s>{% endif %}{% if m.role == 'user' %}<u>"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}</u>"
    "{% elif m.role == 'assistant' %}<a>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}</a>"
    "{% elif m.role == 'tool' %}<u><tool>{{ m.content | tojson }}</tool></u>{% endif %}{% endfor %}<a>"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def _prompt(*messages: dict[str, Any], id: str = "p", target: str | None = " four", **options: Any) -> Prompt:
    chat = json.dumps({"messages": messages, "options": options})
    return Prompt(id, "s", "d", str(messages[-1]["content"]), target, chat=chat)


def _turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _said(item: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    """What stands together under each role, but for the template's."""
    runs = groupby(zip(item.roles, item.ids, strict=True), key=lambda pair: pair[0])
    return [(role, tokenizer.decode([i for _, i in run])) for role, run in runs if role != "template"]


CONVERSATIONS = {
    "a word of the header": [("user", "user")],
    "one letter": [("user", "a")],
    "system and user": [("system", "Be brief, assistant."), ("user", "What is two plus two?")],
    "the same twice": [("system", "user"), ("user", "user")],
    "earlier turns": [("system", "Be brief."), ("user", "Two?"), ("assistant", "system"), ("user", "<turn>user\nTwo!")],
    "white space": [("user", " \n What is two? \n\n")],
}


@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_every_turn_is_found(template: str, turns: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    prompt = _prompt(*(_turn(role, content) for role, content in CONVERSATIONS[turns]))
    (item,) = encode([prompt], tokenizer, 512)
    kept = [
        ("system" if role == "system" else "user", content.strip() if template in TRIMMING else content)
        for role, content in CONVERSATIONS[turns]
    ]
    if template == "system folded into the last user" and turns == "earlier turns":
        kept = [*kept[1:3], kept[0], kept[3]]  # which is where it stands
    assert _said(item, tokenizer) == [*kept, ("answer", " four")]
    assert len(item.roles) == len(item.ids) and item.roles[item.n_text :] == ("answer",) * (len(item.ids) - item.n_text)


def test_what_a_template_cuts_or_leaves_out_is_nobodys(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES["system without a header, reasoning cut off"]
    thought = _turn("assistant", "<think>user</think>Two.")
    (item,) = encode([_prompt(_turn("user", "One?"), thought, _turn("user", "Two?"))], tokenizer, 512)
    assert _said(item, tokenizer) == [("user", "One?"), ("user", "Two."), ("user", "Two?"), ("answer", " four")]
    tokenizer.chat_template = TEMPLATES["headers with a default system"]
    (item,) = encode([_prompt(_turn("user", "One?"))], tokenizer, 512)
    assert "helper" in tokenizer.decode(item.ids) and _said(item, tokenizer)[0] == ("user", "One?")
    tokenizer.chat_template = "{{ messages[-1].content }}{{ 'system' }}"
    (item,) = encode([_prompt(_turn("system", "system"), _turn("user", "One?"))], tokenizer, 512)
    assert _said(item, tokenizer) == [("user", "One?"), ("answer", " four")]
    tokenizer.chat_template = "{{ 'Upper: ' + messages[-1].content | upper }}"  # it says something else
    (item,) = encode([_prompt(_turn("user", "One?"))], tokenizer, 512)
    assert tokenizer.decode(item.ids).startswith("Upper: ONE?") and _said(item, tokenizer)[0] == ("user", "ONE?")


def test_tools_and_their_results(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TOOLS
    call = {"function": {"name": "sum", "arguments": {"of": "two"}}}
    tools = [{"name": "sum", "description": "two plus two"}]
    prompt = _prompt(
        _turn("system", "Be brief."),
        _turn("user", [{"type": "text", "text": "two plus"}, {"type": "text", "text": " two"}, {"type": "image"}]),
        _turn("assistant", None, tool_calls=[call], reasoning_content="I sum."),
        _turn("tool", 'It "is" four.'),
        tools=tools,
    )
    (item,) = encode([prompt], tokenizer, 512)
    assert _said(item, tokenizer) == [
        ("system", "Be brief."),
        ("user", "two plus two"),
        ("user", "I sum."),
        ("user", 'It \\"is\\" four.'),  # as JSON
        ("answer", " four"),
    ]


def test_a_template_that_refuses_the_mark_leaves_its_turn_to_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' and m.content not in ('on', 'off') %}"
        "{{ raise_exception('on or off') }}{% endif %}<{{ m.content }}>{% endfor %}"
    )
    (item,) = encode([_prompt(_turn("system", "on"), _turn("user", "One?"))], tokenizer, 512)
    assert _said(item, tokenizer) == [("user", "One?"), ("answer", " four")]


@pytest.mark.parametrize("today", ["Date: 1 May", "Date: 28 November", None])
def test_a_text_that_was_kept_has_the_roles_of_its_day(today: str | None) -> None:
    """The template of today writes another date, or is gone."""

    def written(prompt: Prompt, date: str | None = today) -> str:
        if date is None:
            raise PromptError("no template")
        turns = json.loads(str(prompt.chat))["messages"]
        return f"<user>{turns[0]['content']}<sys>{date}" + "".join(f"<user>{m['content']}<end>" for m in turns[1:])

    system, user = _turn("system", "Be brief."), _turn("user", "28 Two?")
    prompt = _prompt(system, user)
    text = written(prompt, "Date: 28 March")
    kept = replace(prompt, chat=json.dumps({"messages": [system, user], "options": {}, "rendered": text}))
    ends = range(1, len(text) + 1)  # a token a character
    roles = text_roles(kept, text, [9] * len(text), ends, (), written)
    found = {name: "".join(c for c, role in zip(text, roles, strict=True) if role == name) for name in set(roles)}
    assert found == {"system": "Be brief.", "user": "28 Two?", "template": "<user><sys>Date: 28 March<user><end>"}


def test_a_plain_text_is_the_users_and_special_tokens_are_nobodys(tokenizer: PreTrainedTokenizerFast) -> None:
    plain = Prompt("p", "s", "d", "The heart<eos> pumps", " blood")
    (item,) = encode([plain], tokenizer, 64)
    assert item.roles[0] == "template" and item.ids[0] == 0
    assert _said(item, tokenizer) == [("user", "The heart"), ("user", " pumps"), ("answer", " blood")]
    (alone,) = encode([Prompt("p", "s", "d", "The heart")], tokenizer, 64)
    assert set(alone.roles[1:]) == {"user"} and alone.user_pos == 1


@pytest.mark.parametrize("text", ["Ärzte 你好 \U0001f642", "\U0001f642"])
def test_characters_of_several_tokens(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = TEMPLATES["headers with a default system"]
    (item,) = encode([_prompt(_turn("user", text), target="\U0001f642")], tokenizer, 512)
    assert _said(item, tokenizer) == [("user", text), ("answer", "\U0001f642")]


@pytest.fixture(scope="module")
def several(tokenizer: PreTrainedTokenizerFast) -> list[Encoded]:
    """Four prompts behind a long system prompt, and one of another set."""
    tokenizer.chat_template = TEMPLATES["headers with a default system"]
    texts = ["What is two plus two?", "What is two?", "What is seven", "What is two plus two? Answer:"]
    system = _turn("system", "Question: what is the capital of France? Answer: Paris. " * 3)
    prompts = [_prompt(system, _turn("user", text), id=f"p{i}") for i, text in enumerate(texts)]
    return encode([*prompts, Prompt("q", "other", "d", "What is two plus two?", " four")], tokenizer, 512)


def test_places_begin_where_prompts_differ(several: list[Encoded], tokenizer: PreTrainedTokenizerFast) -> None:
    *chats, plain = several
    begun = [tokenizer.decode([item.ids[p] for p in positions(item, "from user")]) for item in chats]
    end = "<|im_end|>\n<|im_start|>assistant\n four"
    assert begun[0].startswith(" two plus two?") and begun[1] == f" two?{end}" and begun[2] == f" seven{end}"
    assert all(tokenizer.decode(item.ids).endswith(text) for item, text in zip(chats, begun, strict=True))
    assert len({item.ids[: item.user_pos] for item in chats}) == 1
    assert all("system" not in item.roles[item.user_pos :] for item in chats)
    assert positions(plain, "from user") == range(1, len(plain.ids))  # nothing is shared with another set
    for item in several:
        assert positions(item, "from answer") == range(item.n_text - 1, len(item.ids))
        assert positions(item, "all") == range(len(item.ids))


def test_places_never_begin_after_the_answer_is_read(tokenizer: PreTrainedTokenizerFast) -> None:
    """A text that all share, one that is the beginning of another, and a prompt that is alone."""
    tokenizer.chat_template = TEMPLATES["headers, trimmed"]
    same = [_prompt(_turn("user", "What is two?"), id=f"p{i}", target=answer) for i, answer in enumerate([" two", "!"])]
    longer = [Prompt(f"q{i}", "plain", "d", text, " four") for i, text in enumerate(["Two and", "Two and two"])]
    foiled = [Prompt("r", "foils", "d", "Two and two make", " twelve", " twenty")]
    for item in encode([*same, *longer, *foiled], tokenizer, 512):
        assert 0 < item.user_pos <= min(item.answer_pos, item.n_text - 1)
        assert item.ids[item.user_pos] in item.ids[1 : item.n_text]
    first, second = (item.user_pos for item in encode(same, tokenizer, 512))
    assert first == second < min(item.n_text for item in encode(same, tokenizer, 512)) - 5  # the user's first token


def test_a_continuation_is_the_answer(several: list[Encoded], tokenizer: PreTrainedTokenizerFast) -> None:
    item = several[0].followed_by([5, 6, 7])
    assert item.roles[: item.n_text] == several[0].text_roles and item.roles[item.n_text :] == ("answer",) * 3
    assert positions(item, "from user") == range(several[0].user_pos, len(item.ids))
    assert positions(item, "from answer").start == item.generated.start == item.n_text - 1
    given = Prompt("p", "s", "d", "The heart", " blood", continuation=" pumps blood")
    (followed,) = encode_continuations(encode([given], tokenizer, 64), tokenizer, 64)
    assert _said(followed, tokenizer) == [("user", "The heart"), ("answer", " pumps blood")]
