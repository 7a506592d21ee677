"""Chat templates of our own with the features of published ones, and conversations that use them."""

from typing import Any

TEMPLATES: dict[str, str] = {
    # Tools in the system's turn, calls and results as JSON, reasoning of the last turns only, a thinking switch.
    "tools": (
        "{% if tools %}<sys>{% if messages[0].role == 'system' %}{{ messages[0].content }} {% endif %}Tools: "
        "{% for tool in tools %}{{ tool | tojson }}{% endfor %}</sys>"
        "{% elif messages[0].role == 'system' %}<sys>{{ messages[0].content }}</sys>{% endif %}"
        "{% for m in messages %}"
        "{% if m.role == 'user' %}<user>"
        "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}"
        "{% endif %}"
        "</user>"
        "{% elif m.role == 'tool' %}<result {{ m.name }}>{{ m.content }}</result>"
        "{% elif m.role == 'assistant' %}<assistant>"
        "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content or '' }}"
        "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}</assistant>\n"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
    ),
    # No system turn, turns in strict order, a BOS of its own, white space cut off.
    "strict": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{{ raise_exception('there is no system here') }}{% endif %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('take turns') }}{% endif %}"
        "<turn {{ 'model' if m.role == 'assistant' else m.role }}>{{ m.content | trim }}</turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<turn model>{% endif %}"
    ),
    # The system's words inside the first user turn; other roles are passed over.
    "folded": (
        "{{ bos_token }}{% set first = '' %}{% if messages[0].role == 'system' %}"
        "{% set first = messages[0].content + '\n\n' %}{% endif %}{% set ns = namespace(first=first) %}"
        "{% for m in messages %}{% if m.role == 'user' %}[Q]{{ ns.first + m.content }}[/Q]{% set ns.first = '' %}"
        "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    # Today's date, unless it is given.
    "dated": (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today: {{ date_string }}\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
    # Today's date, always.
    "today": (
        "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}|{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}|assistant: {% endif %}"
    ),
    # A generation prompt that opens a thought; reasoning is dropped from replies.
    "thinks": (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    ),
    # A default system turn, and documents.
    "documents": (
        "{% if messages[0].role != 'system' %}<system>Help.</system>{% endif %}"
        "{% for d in documents or [] %}<doc {{ d.title }}>{{ d.text }}</doc>{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
}

TOOL = {"type": "function", "function": {"name": "dose", "parameters": {"type": "object", "properties": {}}}}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "How much?"}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "dose", "arguments": {"of": "it", "by": 2}}}],
}
RESULT = {"role": "tool", "name": "dose", "tool_call_id": "c1", "content": "5 mg"}
THOUGHT = {"role": "assistant", "content": "Five.", "reasoning_content": "It says five."}

#: Rows of a prompt set. The messages end before the reply.
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {"messages": [USER, {"role": "assistant", "content": "Five."}, USER]},
    "tools": {"messages": [SYSTEM, USER], "tools": [TOOL]},
    "result": {"messages": [USER, CALLING, RESULT], "tools": [TOOL]},
    "reasoning": {"messages": [USER, THOUGHT, USER]},
    "thinking off": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}},
    "thinking on": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True}},
    "parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "How"}, {"type": "text", "text": "?"}]}]
    },
    "documents": {"messages": [USER], "documents": [{"title": "Leaflet", "text": "Five."}]},
    "a day": {"messages": [USER], "chat_template_kwargs": {"date_string": "01 Feb 2003"}},
}
