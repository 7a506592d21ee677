"""The prompt readers. The first byte chooses the kind of file, the second how a suite would have it read."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from fuzz.oracle import is_read
from tv.prompts.files import PromptSet, read_prompts

_KINDS = ("jsonl", "json", "csv", "parquet", "tsv")
_WAYS: tuple[dict[str, object], ...] = (
    {},
    {"chat": True, "columns": {"messages": "turns"}},
    {"columns": {"text": "question", "target": "answer"}, "limit": 2},
    {"chat": {"system": "Be brief.", "options": {"enable_thinking": False}}},
)


def _parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"id": [1, 2], "text": ["a", "b"], "target": ["c", None]}), file)
    return file.getvalue()


SEEDS = [
    b'\0\0{"id": "a", "text": "The heart", "target": " pumps", "foil": " shines", "domain": "m", "cluster": "c"}\n',
    b'\0\1{"turns": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}\n\n{"text": "x"}\n',
    b'\0\2{"question": "\\u00e9?", "answer": "1"}\n',
    b'\1\0[{"id": "a", "text": "x", "continuation": "y"}, {"id": "b", "text": "z"}]',
    b'\2\0id,text,target\na,"x, ""y""\nz", t\nb,w,\n',
    b"\2\2question,answer\nq,a\n",
    b"\3\0" + _parquet(),
    b'\4\0id\ttext\ta\t "x\ty" \n',
    b'\0\3{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", '
    b'"content": null, "tool_calls": [{"a": "f"}]}], "tools": [{"a": 1}], "chat_template_kwargs": "{}"}\n',
    b'\0\3{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}\n',
    b'\1\0[{"instruction": "a", "input": "b", "output": "c"}, {"instruction": "d", "input": "", "output": "e"}]',
]


def target(data: bytes) -> bool:
    """Whether these bytes are prompts."""
    if len(data) < 2:
        return False
    name, way = f"p.{_KINDS[data[0] % len(_KINDS)]}", _WAYS[data[1] % len(_WAYS)]
    return is_read(
        {name: data[2:]}, lambda here: read_prompts([PromptSet.model_validate({"file": here / name, **way})])
    )
