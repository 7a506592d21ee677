"""Whatever the bytes, a reader returns or raises an InputError: suites, prompts, checkpoint headers and their index."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from probes.suite import load_suite
from tv.errors import InputError
from tv.prompt_files import PromptSet, read_prompts
from tv.tensors import header, stored_tensors

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_SUITE_KEYS = st.sampled_from(["name", "base", "tuned", "prompts", "measure", "attribute", "seed", "epsilons"])
_PROMPT_KEYS = st.sampled_from(["id", "text", "target", "foil", "domain", "messages", "cluster"])
_ENTRY = st.fixed_dictionaries({"dtype": _VALUES, "shape": _VALUES, "data_offsets": _VALUES | st.lists(st.integers())})


def _dumped(values: st.SearchStrategy[object]) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: json.dumps(value).encode())


def _read(name: str, content: bytes, read: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as directory, suppress(InputError):
        path = Path(directory) / name
        path.write_bytes(content)
        read(path)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.binary(max_size=200) | _dumped(st.dictionaries(_SUITE_KEYS, _VALUES)) | st.text(max_size=80).map(str.encode))
def test_suites(content: bytes) -> None:
    _read("suite.yaml", content, load_suite)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.binary(max_size=200) | _dumped(st.dictionaries(_PROMPT_KEYS, _VALUES)) | _dumped(_VALUES))
def test_prompts(content: bytes) -> None:
    for name in ("prompts.jsonl", "prompts.json", "prompts.csv", "prompts.parquet"):
        _read(name, content, lambda path: read_prompts([PromptSet(file=path)]))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(_dumped(_VALUES) | _dumped(st.dictionaries(st.text(max_size=5), _ENTRY, max_size=3)) | st.binary(max_size=60))
def test_headers(text: bytes) -> None:
    _read("model.safetensors", struct.pack("<Q", len(text)) + text, header)
    _read("model.safetensors", text, header)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.binary(max_size=60) | _dumped(st.fixed_dictionaries({"weight_map": _VALUES})) | _dumped(_VALUES))
def test_indices(content: bytes) -> None:
    _read("model.safetensors.index.json", content, lambda path: stored_tensors(path.parent))
