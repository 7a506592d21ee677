"""What the pages tell people to type is there, and works: in order, page by page, on the embedded models.

Prompts and tasks are cut to their first rows, suites to what is quick: a command takes a second or two.
"""

import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

from probes.cli import app as probes_app, main as probes_main
from tests.command import call
from tests.docs.commands import PAGES, ROOT, Command, commands
from tv.choosing import candidates
from tv.cli import app as tv_app, main as tv_main

OURS: dict[str, tuple[typer.Typer, Callable[[], None]]] = {
    "tv": (tv_app, tv_main),
    "probes": (probes_app, probes_main),
}
ROWS = 5
QUICK = {
    "measure": ["gates", "behaviour"],
    "bootstrap": 20,
    "epsilons": [0.05],
    "noise_floor": False,
    "attribute": {"methods": ["graft"], "controls": [], "curves": False, "nodes": 2, "most_nodes": 4},
}
#: Options that a command is given after those of its page, whose place they take: fewer prompts, draws and steps.
SPARING = {
    "attention": ("--prompts", "6", "--draws", "2"),
    "discover": ("--longest", "5"),
    "edges": ("--prompts", "6", "--draws", "2", "--steps", "2", "--orders", "2"),
    "features": ("--latents", "32", "--steps", "20", "--tokens", "2000", "--effects", "2", "--seeds", "1"),
    "repair": ("--draws", "2"),
    "ssa": ("--draws", "2"),
    "steer": ("--layer", "2", "--dose", "2", "--placebos", "3", "--samples", "1"),
}
READ_FIRST = {"README.md", "docs/tutorial.md", "docs/cli.md", "docs/gate.md"}
_HERE = "/the-folder-of-a-page"
DEMO = "reports/demo"  # the run that a page compares, model by model
EVERY = [pytest.param(page, command, id=f"{page.name}:{command.line}") for page in PAGES for command in commands(page)]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _marks(page: Path) -> list[pytest.MarkDecorator]:
    """All pages but those that most people begin with are run by `make test-all` alone."""
    return [] if _name(page) in READ_FIRST else [pytest.mark.thorough]


def test_pages_have_commands() -> None:
    assert len(EVERY) > 40 and {_name(page) for page in PAGES} >= READ_FIRST


@pytest.mark.parametrize(("page", "command"), EVERY)
def test_a_command_is_one_that_there_is(page: Path, command: Command) -> None:
    """Every option and argument is known: the command line parses, without being carried out."""
    program, *arguments = command.argv
    name = Path(program).name
    if name in OURS:
        _parse(_command(name), name, arguments)
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif name == "python":
        (first, *_) = arguments
        where = _[0].replace(".", "/") + ".py" if first == "-m" else first
        assert (ROOT / where).is_file()
    elif name == "source":
        assert arguments == [".venv/bin/activate"]
    else:
        assert name == "pip", f"{_name(page)}:{command.line}: what is {name}?"


@cache
def _command(name: str) -> object:
    return typer.main.get_command(OURS[name][0])


def _parse(command: object, name: str, arguments: list[str], parent: object = None) -> None:
    context = command.make_context(name, list(arguments), parent=parent)  # type: ignore[attr-defined]
    if hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        found, inner, left = command.resolve_command(context, rest)
        _parse(inner, found, left, context)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place that looks like the checkout, with fewer prompts; a repair tries fewer points."""
    for part in ("prompts", "tasks", "suites", "gates", "logs"):
        shutil.copytree(ROOT / "data" / part, tmp_path / "data" / part)
    (tmp_path / "data" / "models").symlink_to(ROOT / "data" / "models")
    for file in (tmp_path / "data").rglob("*.jsonl"):
        file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]), encoding="utf-8")
    monkeypatch.setattr(candidates, "TRADEOFFS", (4.0,))
    monkeypatch.setattr(candidates, "SCALES", (1.0, 0.8, 0.6, 0.4))
    monkeypatch.setattr(candidates, "DENSITIES", (0.5,))
    monkeypatch.setattr(candidates, "PREFIXES", 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _shorten(suites: Path, n_tuned: int) -> None:
    """The checkout's suites, cut to what is quick and to so many tuned models."""
    for file in suites.glob("*.yaml"):
        suite = yaml.safe_load((ROOT / "data" / "suites" / file.name).read_text()) | QUICK
        tuned = dict(list(suite["tuned"].items())[:n_tuned])
        file.write_text(yaml.safe_dump(suite | {"tuned": tuned}, sort_keys=False))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `probes run` made for one page, for the next page that tells the same: most begin with the demo."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=_name(page), marks=_marks(page)) for page in PAGES])
def test_the_commands_of_a_page_run(
    page: Path, elsewhere: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands(page):
        program, *arguments = command.argv
        if not command.runs or program not in OURS:
            continue
        made = runs / re.sub(r"\W+", "-", " ".join(arguments))
        if program == "probes" and arguments[0] == "run" and made.exists():
            out = arguments[arguments.index("--out") + 1]
            shutil.rmtree(elsewhere / out, ignore_errors=True)
            shutil.copytree(made, elsewhere / out)
            _moved(elsewhere / out, _HERE, str(elsewhere))
            continue
        _shorten(elsewhere / "data" / "suites", 2 if DEMO in arguments else 1)
        status, _, err = call(monkeypatch, capsys, OURS[program][1], *arguments, *SPARING.get(arguments[0], ()))
        assert status == 0, f"{_name(page)}:{command.line}: {err}"
        if program == "probes" and arguments[0] == "run" and "--out" in arguments:
            shutil.copytree(elsewhere / arguments[arguments.index("--out") + 1], made)
            _moved(made, str(elsewhere), _HERE)


def _moved(run: Path, before: str, after: str) -> None:
    """A run names its checkpoints: for the next page they are at that page's place."""
    for file in (run / "manifest.json", run / "journal.jsonl"):
        file.write_text(file.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")
