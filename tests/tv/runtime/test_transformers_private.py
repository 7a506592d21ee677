"""The private names of transformers: one file has them, and says so when one moves."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import probes
import tv
from tests.pairs import build_model
from tv.runtime import transformers_private as private

PUBLIC = {"transformers", "transformers.utils", "transformers.utils.logging"}


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.split(".")[0] == "transformers"}


def test_no_other_file_has_private_names() -> None:
    files = [file for package in (tv, probes) for file in Path(package.__file__).parent.rglob("*.py")]
    others = [file for file in files if file != Path(private.__file__)]
    assert len(others) > 100
    attributes = re.compile(r"\._name_or_path\b|_no_split_modules|_keys_to_ignore_on_load|transformers\.integrations")
    for file in others:
        assert _imports(file) <= PUBLIC, file
        assert not attributes.search(file.read_text()), file


@pytest.mark.parametrize("name", private._HOMES)
def test_a_name_is_that_of_transformers(name: str) -> None:
    assert getattr(private, name) is getattr(importlib.import_module(private._HOMES[name]), name)


@pytest.mark.parametrize("home", ["transformers.nowhere", "transformers.utils"])
def test_a_name_that_has_moved_is_one_line(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(private._HOMES, "rename_source_key", home)
    with pytest.raises(tv.InputError, match=rf"has no {home}\.rename_source_key; known to work: 5\.\d+") as caught:
        private.rename_source_key  # noqa: B018
    assert "\n" not in str(caught.value)


def test_attributes_are_read() -> None:
    model = build_model("llama")
    assert private.undivided_classes(model) == ["LlamaDecoderLayer"]
    model._keys_to_ignore_on_load_unexpected = ["a.*"]
    assert private.ignored_keys(model) == ("a.*",)
