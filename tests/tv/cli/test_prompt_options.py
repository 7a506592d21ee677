"""Every command that reads prompts reads them by the same options, and says what a reader should know of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import tv
from probes.cli import app as probes_app, main as probes_main
from tests.command import call
from tests.pairs import build_pair, build_tokenizer, write_prompts, write_suite
from tests.tv.prompts.templates import TEMPLATES
from tv.cli import app, main
from tv.cli.prompt_options import prompt_sets, settings_of
from tv.cli.terminal import begin
from tv.errors import InputError

READING = {"columns", "limit", "domain", "chat", "system", "chat_option"}


def test_every_command_with_prompts_takes_them() -> None:
    commands = typer.main.get_command(app).commands | {"run": typer.main.get_command(probes_app).commands["run"]}  # type: ignore[attr-defined]
    taken = {name: {option.name for option in own.params} for name, own in commands.items()}
    readers = {name for name, options in taken.items() if "prompts" in options} | {"run"}
    assert readers == {"path", "quality", "align", "trajectory", "run"}
    assert all(taken[name] >= READING for name in readers)
    experiments = {
        name: {option.name for option in own.params} for name, own in commands["experiment"].commands.items()
    }
    takers = {name for name, options in (taken | experiments).items() if "task" in options}
    assert takers == {"evaluate", "negation", "addition", "lineage"}
    assert all((taken | experiments)[name] >= READING - {"columns", "domain"} for name in takers)


def test_an_experiment_asks_as_its_options_say(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    given: dict[str, Any] = {}

    def told(*_: object, **settings: Any) -> None:
        given.update(settings)
        raise InputError("enough")

    monkeypatch.setattr("tv.experiments.negation", told)
    words = ["experiment", "negation", "b", "t", "--task", "x", "-o", "out", "--system", "Be brief."]
    assert call(monkeypatch, capsys, main, *words, "--chat-template", "tuned", "--chat-option", "n=1")[0] == 2
    assert given["chat"] == {"template": "tuned", "system": "Be brief.", "options": {"n": 1}}
    assert "add --chat or" in call(monkeypatch, capsys, main, *words)[2]


GIVEN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "columns": (
        {"columns": ["text=question,target=answer", "domain=a b"]},
        {"columns": {"text": "question", "target": "answer", "domain": "a b"}},
    ),
    "a comma in a name": ({"columns": ["text=one, two,id=n"]}, {"columns": {"text": "one, two", "id": "n"}}),
    "rows": ({"limit": 3, "domain": "law"}, {"limit": 3, "domain": "law"}),
    "chat": ({"chat": True}, {"chat": True}),
    "system": ({"chat": True, "system": "Be brief."}, {"chat": {"system": "Be brief."}}),
    "options": (
        {"chat": True, "chat_option": ["enable_thinking=False", "n=-3", "date=01 Feb"]},
        {"chat": {"options": {"enable_thinking": False, "n": -3, "date": "01 Feb"}}},
    ),
}


@pytest.mark.parametrize("case", GIVEN)
def test_options_are_the_settings_of_a_set(case: str) -> None:
    options, settings = GIVEN[case]
    assert settings_of(**options) == settings
    (found,) = prompt_sets([Path("p.jsonl")], **options)
    assert found.model_dump(exclude_unset=True, exclude={"file", "chat"}) == {
        name: value for name, value in settings.items() if name != "chat"
    }
    assert (found.chat is not None) == ("chat" in settings)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a key": ({"columns": ["question=text"]}, "--columns question=…: no key 'question'; there are id, text,"),
    "no pair": ({"columns": ["question"]}, "--columns 'question': expected the form text=question,target=answer"),
    "no value": ({"chat": True, "chat_option": ["a="]}, "--chat-option 'a=': expected the form enable_thinking=false"),
    "system alone": (
        {"system": "Be brief."},
        "--system needs a conversation; add --chat or",
    ),
    "option alone": (
        {"chat_option": ["a=1"]},
        "--chat-option needs a conversation; add --chat or",
    ),
    "blank": ({"chat": True, "system": " "}, "--system: the system message is blank"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_one_line(case: str) -> None:
    options, said = WRONG[case]
    with pytest.raises(InputError) as caught:
        prompt_sets([Path("p.jsonl")], **options)
    assert str(caught.value).startswith(said)


def test_options_without_prompts_are_refused() -> None:
    assert prompt_sets([]) == []
    with pytest.raises(InputError, match="--limit says how to read prompts, but no prompts are given"):
        prompt_sets([], limit=2)


@pytest.fixture(autouse=True)
def plain_speech() -> Iterator[None]:
    """Later tests print for a person again."""
    yield
    begin(quiet=False, json=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pair with a chat template and a longer context."""
    folder = tmp_path_factory.mktemp("chat")
    paths = build_pair(folder)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES["tools"]
    for path in paths:
        tokenizer.save_pretrained(path)
    return paths


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    given = [{"question": "The heart", "answer": "pumps", "kind": 3}, {"question": "A lamp", "answer": "gives"}]
    return write_prompts(tmp_path / "qa.jsonl", given)


COMMANDS = {
    "path": ["--from", 0, "--to", 1, "--points", 2],
    "quality": ["--new-tokens", 2],
    "align": ["--on", "activations"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_tell_how_they_read(command: str, pair: tuple[Path, Path], rows: Path, monkeypatch, capsys) -> None:
    words = [command, *pair, "--prompts", rows, *COMMANDS[command], "--json"]
    code, stdout, _ = call(monkeypatch, capsys, main, *words)
    notes = json.loads(stdout)["notes"]
    assert code == 0 and f"{rows}: read with columns: {{text: question, target: answer}}" in notes
    assert any(note.startswith("the text ends without a space") and "(2 of 2," in note for note in notes)
    words += ["--columns", "text=question,target=answer", "--limit", 1, "--domain", "anatomy", "--chat"]
    words += ["--system", "Be.", "--chat-option", "mood=calm"]
    code, stdout, _ = call(monkeypatch, capsys, main, *words)
    notes = json.loads(stdout)["notes"]
    assert code == 0 and [note for note in notes if "qa" in note] == [
        "the option mood changes nothing in what the chat template writes (1 of 1, first prompt 'qa-1' of qa)"
    ]


def test_a_run_reads_every_set_so_and_keeps_the_notes(
    pair: tuple[Path, Path], rows: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    suite = write_suite(tmp_path, *pair, prompts=[{"file": str(rows)}], attribute=None, measure=["behaviour"])
    words = ["run", suite, "--out", tmp_path / "run", "--stages", "capture", "--limit", 1, "--chat", "--json"]
    code, _, stderr = call(monkeypatch, capsys, probes_main, *words, "--chat-option", "mood=calm")
    remarks = [json.loads(line).get("remark", "") for line in stderr.splitlines()]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    said = "the option mood changes nothing in what the chat template writes (1 of 1, first prompt 'qa-1' of qa)"
    assert code == 0 and manifest["n_prompts"] == 1 and f"note: {said}" in remarks
    assert manifest["notes"]["moved"][-1] == said
    (chosen,) = manifest["suite"]["prompts"]
    assert (chosen["limit"], chosen["chat"]["options"], chosen["file"]) == (1, {"mood": "calm"}, str(rows))


def test_the_python_functions_note_it_too(pair: tuple[Path, Path], rows: Path) -> None:
    frame = tv.path(*pair, rows, alphas=(0, 1), draws=5)
    assert frame.attrs["notes"][0].endswith("read with columns: {text: question, target: answer}")
