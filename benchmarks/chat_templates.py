"""Do conversations give the tokens of `apply_chat_template`? `python benchmarks/chat_templates.py DIRECTORY...`.

Each directory is searched for templates of models (`*.jinja`); packages such as trl and axolotl hold many (unpack them
with `pip install --no-deps --target DIRECTORY trl axolotl`). Prints a row a template and a column a conversation:

- `=`: tokens and text are those of `tokenizer.apply_chat_template`; `= 2`: and two notes say what it passes over
- `refused`: the template raises, and so does ours, in one line
- `reply`: and the reply is as the template writes it in the whole conversation
- `text`: and the reply is its text alone, because the template writes no more of it
- `line`: a line says why a reply cannot be told apart
- `parts`: a line says that the template would print parts as a list
- `DIFFERS`: anything else
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tv.errors import PromptError
from tv.prompts.encoding import encode
from tv.prompts.files import PromptSet, read_prompts
from tv.prompts.notes import prompt_notes

TOOL = {
    "type": "function",
    "function": {
        "name": "dose",
        "description": "The dose of a drug.",
        "parameters": {"type": "object", "properties": {"drug": {"type": "string"}}, "required": ["drug"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "dose", "arguments": {"drug": "galoria"}}}
USER = {"role": "user", "content": "How much galoria?"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "dose", "tool_call_id": "call00001", "content": "5 mg"}
THOUGHT = {"role": "assistant", "content": "Five.", "reasoning_content": "The leaflet says five."}
#: A row of a prompt set each.
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "plain": {"messages": [USER]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    "tools": {"messages": [USER, CALLING, RESULT], "tools": [TOOL]},
    "tools+system": {"messages": [{"role": "system", "content": "Be brief."}, USER], "tools": [TOOL]},
    "reasoning": {"messages": [USER, THOUGHT, {"role": "user", "content": "And for a child?"}]},
    "thinking off": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
    "thinking on": {"messages": [USER], "chat_template_kwargs": {"enable_thinking": True, "thinking": True}},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "How much galoria?"}]}]},
    "call as target": {"messages": [USER, CALLING], "tools": [TOOL]},
    "thought as target": {"messages": [USER, THOUGHT]},
}


def main() -> None:
    """One table over all templates that are different."""
    found = {
        path.read_text(encoding="utf-8"): path
        for folder in sys.argv[1:]
        for path in sorted(Path(folder).rglob("*.jinja"))
    }
    print(f"| template | {' | '.join(CONVERSATIONS)} |\n|{' --- |' * (1 + len(CONVERSATIONS))}")
    cells: list[str] = []
    for template, path in sorted(found.items(), key=lambda item: item[1].stem):
        tokenizer = tokenizer_of(template)
        row = [cell(tokenizer, name) for name in CONVERSATIONS]
        cells += row
        print(f"| {path.stem} ({path.parts[-3]}) | {' | '.join(row)} |", flush=True)
    counts = {
        word: sum(one.startswith(word) for one in cells)
        for word in ("=", "reply", "text", "line", "parts", "refused", "DIFFERS")
    }
    print(f"\n{len(found)} templates, {len(cells)} cells: {counts}")
    sys.exit(bool(counts["DIFFERS"]))


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the special tokens that a template names."""
    plain = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    named = dict.fromkeys(["<bos>", "<eos>", *re.findall(r"<[|｜]?[\w▁]+[|｜]?>|\[/?[A-Z_]+\]", template)])
    plain.add_special_tokens([AddedToken(name, special=True) for name in named])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def cell(tokenizer: PreTrainedTokenizerFast, name: str) -> str:
    """What came of one conversation."""
    row = CONVERSATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        prompts = read_prompts([PromptSet(file=path, chat=True)])  # type: ignore[arg-type]
    before = row["messages"][: -1 if row["messages"][-1]["role"] == "assistant" else None]
    try:
        expected: list[int] | None = _applied(tokenizer, before, row, add_generation_prompt=True)
    except Exception:
        expected = None
    try:
        (item,) = encode(prompts, tokenizer, 2**31)
    except PromptError as error:
        assert "\n" not in str(error)
        if expected is None:
            return "refused"
        return "parts" if "no parts" in str(error) else "line" if len(before) < len(row["messages"]) else "DIFFERS"
    if expected is None or list(item.ids[: item.n_text]) != expected:
        return "DIFFERS"
    notes = prompt_notes(prompts, tokenizer)
    counted = f" {len(notes)}" if notes else ""
    if len(before) == len(row["messages"]):
        return f"={counted}"
    if item.prompt.target == row["messages"][-1]["content"]:
        return f"text{counted}"
    whole = _applied(tokenizer, row["messages"], row, add_generation_prompt=False)
    follows = tokenizer.decode(whole).startswith(tokenizer.decode(item.ids))
    return ("reply" if follows else "DIFFERS") + counted


def _applied(
    tokenizer: PreTrainedTokenizerFast, messages: list[Any], row: Mapping[str, Any], **options: Any
) -> list[int]:
    given = {**row.get("chat_template_kwargs", {}), **options}
    return list(tokenizer.apply_chat_template(messages, tools=row.get("tools"), **given)["input_ids"])


if __name__ == "__main__":
    main()
