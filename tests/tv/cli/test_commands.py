"""What every command of both programs does: examples, two options, errors and exit statuses."""

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

import tv
from probes.cli import app as probes_app, main as probes_main
from probes.methods import all_methods, all_options
from probes.suite import metric_names
from tests.command import call
from tests.pairs import build_pair
from tv.cli import app as tv_app, main as tv_main
from tv.cli.commands import BAD_INPUT, BUG, DONE, INTERRUPTED

PROGRAMS: dict[str, typer.Typer] = {"tv": tv_app, "probes": probes_app}


def _commands(command: object, *path: str) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every command below this one, with its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    else:
        for name, own in inner.items():
            yield from _commands(own, *path, name)


EVERY = [
    pytest.param(path, own, id=" ".join(path))
    for name, app in PROGRAMS.items()
    for path, own in _commands(typer.main.get_command(app), name)
]


@pytest.mark.parametrize(("path", "own"), EVERY)
def test_every_command_has_an_example_that_parses(path: tuple[str, ...], own: object) -> None:
    _, example = inspect.cleandoc(own.help).split("Example: ")  # type: ignore[attr-defined]
    words = shlex.split(example)
    assert tuple(words[: len(path)]) == path
    given = own.make_context(path[-1], words[len(path) :]).params  # type: ignore[attr-defined]
    assert given["json"] is False and given["quiet"] is False


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_pair(tmp_path_factory.mktemp("pair"))


def test_json_is_an_object_a_line(pair: tuple[Path, Path], tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "table.csv"
    status, stdout, stderr = call(monkeypatch, capsys, tv_main, "geometry", *pair, "-o", out, "--json")
    assert status == DONE
    steps = [json.loads(line) for line in stderr.splitlines()]
    assert {step["stage"] for step in steps} == {"geometry"} and steps[-1]["done"] == steps[-1]["total"] > 0
    (result,) = [json.loads(line) for line in stdout.splitlines()]
    assert result["command"] == "tv geometry" and result["status"] == DONE
    assert result["written"] == [str(out)]
    table = result["tables"][0]
    assert table["columns"][:2] == ["module", "‖T‖/‖W‖"]
    assert {len(row) for row in table["data"]} == {len(table["columns"])}
    assert dict(row[:2] for row in table["data"])["gate"] > 0


def test_quiet_leaves_the_result(pair: tuple[Path, Path], monkeypatch, capsys) -> None:
    status, stdout, stderr = call(monkeypatch, capsys, tv_main, "ssa", *pair, "--quiet")
    assert status == DONE and "its null" in stdout and stderr == ""
    status, stdout, stderr = call(monkeypatch, capsys, tv_main, "ssa", *pair, "--quiet", "--json")
    assert status == DONE and json.loads(stdout)["tables"] and stderr == ""


def _raise(error: BaseException) -> Callable[..., None]:
    def raising(*_: object, **__: object) -> None:
        raise error

    return raising


@pytest.mark.parametrize("main", [tv_main, probes_main], ids=["tv", "probes"])
def test_a_command_line_that_is_wrong(main: Callable[[], None], monkeypatch, capsys) -> None:
    for words in (["nothing"], ["--fast"]):
        status, _, stderr = call(monkeypatch, capsys, main, *words, "--json")
        error = json.loads(stderr)
        assert status == error["status"] == BAD_INPUT and error["error"]
    assert call(monkeypatch, capsys, main)[0] == BAD_INPUT
    assert call(monkeypatch, capsys, main, "--help")[0] == DONE


def test_a_word_that_is_no_choice_or_no_option(monkeypatch, capsys) -> None:
    for words, said in (
        (("run", "s.yaml", "--backend", "torhc"), "--backend: 'torhc' is not one of 'torch', 'transformer_lens', "),
        (("run", "s.yaml", "--backend", "torhc"), "; did you mean 'torch'?\n"),
        (("run", "s.yaml", "--stag", "x"), "no option --stag; did you mean '--stages'?\n"),
        (("neurons", "run", "--top", "3"), "no option --top\n"),
    ):
        assert said in call(monkeypatch, capsys, probes_main, *words)[2]


def test_bad_input_a_bug_and_ctrl_c(pair: tuple[Path, Path], monkeypatch, capsys) -> None:
    status, stdout, stderr = call(monkeypatch, capsys, tv_main, "info", "./nowhere", "--json")
    assert status == BAD_INPUT and not stdout and json.loads(stderr)["error"].startswith("./nowhere: no such directory")
    monkeypatch.setattr("tv.checkpoints.info.described", _raise(ZeroDivisionError("of what?")))
    status, _, stderr = call(monkeypatch, capsys, tv_main, "info", pair[0], "--json")
    told = json.loads(stderr)["error"]
    assert status == BUG and told.startswith("Traceback") and told.endswith("ZeroDivisionError: of what?\n")
    with pytest.raises(ZeroDivisionError):  # as Python tells it: a traceback, and status 1
        monkeypatch.setattr("sys.argv", ["tv", "info", str(pair[0])])
        tv_main()
    monkeypatch.setattr("tv.checkpoints.info.described", _raise(KeyboardInterrupt()))
    status, _, stderr = call(monkeypatch, capsys, tv_main, "info", pair[0], "--json")
    assert status == INTERRUPTED and json.loads(stderr) == {"error": "interrupted", "status": INTERRUPTED}
    monkeypatch.setattr("tv.experiments.ssa", _raise(KeyboardInterrupt()))
    status, _, stderr = call(monkeypatch, capsys, tv_main, "experiment", "ssa", *pair, "-o", pair[0] / "out")
    assert status == INTERRUPTED and "interrupted; rerun the same command to resume" in stderr
    monkeypatch.setattr("tv.trajectory", _raise(KeyboardInterrupt()))
    for more in ([], ["-o", pair[0] / "out"]):  # it is kept where it was to be written
        status, _, stderr = call(monkeypatch, capsys, tv_main, "trajectory", *pair, *more)
        assert status == INTERRUPTED and ("rerun the same command to resume" in stderr) == bool(more)


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        ("tv", "tv ss", ["ssa"]),
        ("tv", "tv ssa --eng", ["--engine"]),
        ("tv", "tv ssa --engine r", ["ray"]),
        ("probes", "probes attribute reports/demo --method g", ["graft", "gradient"]),
    ],
)
def test_the_shell_completes(program: str, words: str, expected: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setenv(f"_{program.upper()}_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    main = {"tv": tv_main, "probes": probes_main}[program]
    assert call(monkeypatch, capsys, main)[1].split() == expected


def test_the_help_lists_what_is_registered(monkeypatch, capsys) -> None:
    """Methods, and the options that their files declare, are asked for when this help is."""
    monkeypatch.setenv("COLUMNS", "1000")
    for main, command, names, options in (
        (tv_main, "apply", list(tv.METHODS), ["--density", "--fraction"]),
        (probes_main, "attribute", [method.name for method in all_methods()], list(map(_flag, all_options()))),
    ):
        _, told, _ = call(monkeypatch, capsys, main, command, "--help")
        assert ", ".join(names) in told and len(options) > 1
        assert [option for option in options if option not in told] == []
    assert ", ".join(metric_names()) in told


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_can_be_shown(shell: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("_PROBES_COMPLETE", f"source_{shell}")
    status, stdout, _ = call(monkeypatch, capsys, probes_main)
    assert status == DONE and f"_PROBES_COMPLETE=complete_{shell}" in stdout


def _shown(text: str) -> str:
    """The letters of a text, however its lines are broken and framed."""
    return re.sub(r"[\s│]+", "", text)


def test_the_help_says_every_default_and_loses_no_word(monkeypatch, capsys) -> None:
    """Square brackets of a text are no markup, a flag has no type, and what must be given is marked."""
    monkeypatch.setenv("COLUMNS", "1000")
    for path, own in [param.values for param in EVERY]:
        app: Any = typer.main.get_command(PROGRAMS[path[0]])
        if len(path) == 2:  # with the options that are registered elsewhere
            own = app.resolve_command(typer.Context(app), [path[1]])[1]
        main = {"tv": tv_main, "probes": probes_main}[path[0]]
        status, help_text, _ = call(monkeypatch, capsys, main, *path[1:], "--help")
        lines = {line.strip("│* ").split()[0].split(",")[0]: line for line in help_text.splitlines() if "│ " in line}
        assert status == DONE and "<bool>" not in help_text and "list[" not in help_text, path
        for one in own.params:
            if one.hidden:
                continue
            name = one.metavar if one.param_type_name == "argument" else max(one.opts, key=len)
            line, flag = lines[name.split()[0]], getattr(one, "is_flag", False)
            assert _shown(one.help or "") in _shown(line), (path, line)
            assert one.required == ("[required]" in line) == line.startswith("│ *"), (path, line)
            default = one.show_default if isinstance(one.show_default, str) else one.default
            if default not in (None, False, "") or (flag and one.secondary_opts):
                assert "[default: " in line, (path, line)
            if default not in (None, False, "") and not flag:
                assert f"[default: {default}]" in line, (path, line)


@pytest.mark.parametrize("program", ["tv", "probes"])
def test_the_version(program: str, monkeypatch, capsys) -> None:
    status, said, _ = call(monkeypatch, capsys, {"tv": tv_main, "probes": probes_main}[program], "--version")
    assert status == DONE and said.splitlines()[0] == f"tuning-probes {version('tuning-probes')}"
    assert f"torch {version('torch')}" in said.splitlines()[1]
