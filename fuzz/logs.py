"""The readers of other evaluations' logs. The first byte chooses the kind of file."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from fuzz.oracle import is_read
from tv.evaluation.logs.compare import compare_logs
from tv.evaluation.logs.read import read_logs
from tv.prompts.files import PromptSet, read_prompts

_KINDS = ("samples_t_2026-01-02T03-04-05.6.jsonl", "log.json", "log.eval")
_SAMPLE = {
    "id": "s/1",
    "epoch": 1,
    "input": "x",
    "target": "B",
    "choices": ["a", "b"],
    "messages": [{"role": "user", "content": [{"type": "text", "text": "attachment://0af1"}]}],
    "scores": {"match": {"value": "C"}, "form": {"value": {"a": 1, "b": "0.5"}}},
}
_HEAD = {"version": 2, "eval": {"task": "t", "model": "m", "created": ""}}
_CHOICES = (
    b'{"doc_id": 0, "doc": {"cluster": "c"}, "target": "1", "arguments": {"gen_args_0": {"arg_0": "x", "arg_1": " a"}, '
    b'"gen_args_1": {"arg_0": "x", "arg_1": " b"}}, "resps": [[["-1.0", "False"]], [["-2.0", "True"]]], '
    b'"filter": "none", "metrics": ["acc"], "doc_hash": "h", "acc": "True"}\n'
)


def _archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("samples/s/1_epoch_1.json", json.dumps(_SAMPLE))
        archive.writestr("header.json", json.dumps(_HEAD))
    return file.getvalue()


SEEDS = [
    b"\0" + _CHOICES,
    b'\0{"doc_id": 0, "doc": {}, "target": "[\'a\']", "arguments": [["x", {}]], "resps": [["a"]], "f1": [1, 0]}\n',
    b'\0{"doc_id": 0, "doc": {}, "arguments": [["x"]], "metrics": ["word_perplexity"], "word_perplexity": [-1, 2]}\n',
    b"\1" + json.dumps({**_HEAD, "samples": [_SAMPLE, {**_SAMPLE, "epoch": 2, "error": {}}]}).encode(),
    b"\2" + _archive(),
]


def target(data: bytes) -> bool:
    """Whether these bytes are a log: of scores, compared with itself, and as prompts."""
    if not data:
        return False
    name = _KINDS[data[0] % len(_KINDS)]

    def read(here: Path) -> None:
        read_logs(here / name)
        compare_logs({"one": here / name, "other": here / name})

    scored = is_read({name: data[1:]}, read)
    return is_read({name: data[1:]}, lambda here: read_prompts([PromptSet(file=here / name)])) and scored
