"""Every public name explains itself: what it takes, what comes back, and an example that runs."""

import doctest
import inspect
import os
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import probes
import tv
from tests.docs.commands import ROOT

#: What an example may use without importing it.
NAMES = {"tv": tv, "probes": probes, "Path": Path, "os": os, "pd": pd}
#: Examples that run for two seconds or more: `make test-all` runs them. What they show has tests of its own.
DEAR = {
    *("tv.repair", "tv.search", "probes.attention", "probes.attribute", "probes.check", "probes.discover"),
    *("probes.edges", "probes.probe", "probes.report", "probes.representations", "probes.steer"),
}
_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _public() -> list[Any]:
    """Functions and classes, each once, under the first name that it has."""
    found: dict[Any, str] = {}
    for package in (tv, probes):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.setdefault(value, f"{package.__name__}.{name}")
    return [
        pytest.param(value, id=name, marks=[pytest.mark.thorough] if name in DEAR else [])
        for value, name in found.items()
    ]


PUBLIC = _public()
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("tv", "probes")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run such as `make demo` leaves, of a few prompts."""
    settings = {
        "prompts": [{"file": ROOT / "data" / "prompts" / f"{name}.jsonl", "limit": 8} for name in ("medical", "math")],
        "bootstrap": 20,
        "measure": ["gates", "changes", "ledger", "behaviour"],
        "attribute": {"methods": ["graft"], "controls": [], "curves": False},
    }
    run = probes.run(
        ROOT / "data" / "suites" / "demo.yaml",
        settings=settings,
        stages=("weights", "capture", "link"),
        out=tmp_path_factory.mktemp("reports") / "demo",
    )
    return Path(run.path)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the embedded data, where nothing that an example writes harms another."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", PUBLIC)
def test_the_example_runs(value: Any, elsewhere: Path, request: pytest.FixtureRequest) -> None:
    examples = doctest.DocTestFinder().find(value, value.__name__, globs=NAMES)
    assert _is_error(value) or examples[0].examples, "its docstring has no example"
    _run(examples, elsewhere, request)


@pytest.mark.sampled(60)
@pytest.mark.parametrize("file", FILES)
def test_the_examples_of_what_is_not_public_run(file: str, elsewhere: Path, request: pytest.FixtureRequest) -> None:
    """With what their file imports and defines."""
    module = import_module(file.removesuffix(".py").replace("/", "."))
    public = {inspect.getdoc(param.values[0]) for param in PUBLIC}
    examples = doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__, extraglobs={"tv": tv})
    _run([one for one in examples if inspect.cleandoc(one.docstring) not in public], elsewhere, request)


@pytest.mark.parametrize("value", PUBLIC)
def test_every_argument_is_explained(value: Any) -> None:
    said, called = _said(value), _called(value)
    assert said.partition("\n")[0].endswith((".", ":")), "its first line is no sentence"
    named = _entries(said, "Args") | _entries(said, "Attributes") | _entries(_said(called), "Args")
    taken = [] if _is_error(value) else [name for name in inspect.signature(called).parameters if name != "self"]
    assert [name for name in taken if name not in named] == [], "arguments without an entry"
    if inspect.isfunction(value) and inspect.signature(value).return_annotation not in (None, "None"):
        assert _section(said, "Returns") or _section(said, "Yields"), "it does not say what comes back"


def test_an_entry_is_one_that_starts_a_line() -> None:
    said = """Do.

    Args:
        a, b: Two, of
            c: no entry.
        d (int): One, not
        e of the line above.
        **f: More.
        g:

    Returns:
        h: No argument.
    """
    said = inspect.cleandoc(said)
    assert _entries(said, "Args") == {"a", "b", "d", "f"}
    assert _entries(said, "Attributes") == set()


def _run(examples: list[doctest.DocTest], place: Path, request: pytest.FixtureRequest) -> None:
    """With a copy of the demo's run where they name it: a copy takes longer than most of them."""
    if any("reports/demo" in one.docstring for one in examples):
        shutil.copytree(request.getfixturevalue("demo"), place / "reports" / "demo")
    assert not any(doctest.SKIP in line.options for one in examples for line in one.examples), "an example is not run"
    runner, printed = doctest.DocTestRunner(optionflags=_OPTIONS, verbose=False), list[str]()
    for one in examples:
        runner.run(one, out=printed.append)
    assert runner.failures == 0, "".join(printed)


def _said(value: Any) -> str:
    """A docstring of its own: what a dataclass would be given is not one."""
    said = inspect.cleandoc(value.__doc__ or "")
    return "" if inspect.isclass(value) and said.startswith(f"{value.__name__}(") else said


def _section(said: str, title: str) -> str:
    """The lines under a title, up to the next that is not indented."""
    found = re.search(rf"^{title}:\n((?:(?: .*)?\n)*)", said + "\n", re.MULTILINE)
    return inspect.cleandoc("\n" + found[1]) if found else ""


def _entries(said: str, title: str) -> set[str]:
    """The names that start an entry: `name: …`, `name (type): …`, `name, other: …`."""
    starts = re.findall(r"^([*\w]+(?:, [*\w]+)*)(?: \([^)]*\))?: *\S", _section(said, title), re.MULTILINE)
    return {name.strip("*") for names in starts for name in names.split(", ")}


def _called(value: Any) -> Any:
    """What arguments are given to: itself; of a protocol, which nobody makes, its call."""
    return value.__call__ if getattr(value, "_is_protocol", False) else value


def _is_error(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Exception)
