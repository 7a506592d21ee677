"""The example for GitHub Actions is one: it parses, and its commands are ours."""

import shlex

import pytest
import typer
import yaml

from probes.cli import app
from tests.docs.commands import ROOT


def test_the_example_parses_and_its_commands_are_ours() -> None:
    text = (ROOT / "examples" / "github-actions" / "gate.yml").read_text(encoding="utf-8")
    workflow = yaml.load(text, Loader=yaml.BaseLoader)  # `on` is a key here, not true
    assert set(workflow) >= {"name", "on", "jobs", "permissions"} and "pull_request" in workflow["on"]
    steps = workflow["jobs"]["gate"]["steps"]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    ours = [shlex.split(step["run"]) for step in steps if step.get("run", "").startswith("probes ")]
    assert [argv[1] for argv in ours] == ["gate", "run", "gate"]
    group = typer.main.get_command(app)
    for _, name, *arguments in ours:
        group.commands[name].make_context(name, list(arguments))  # type: ignore[attr-defined]
        for path in arguments:
            assert not path.startswith("data/") or (ROOT / path).is_file()
    with pytest.raises(typer.exceptions.TyperException):
        group.commands["gate"].make_context("gate", ["run"])  # type: ignore[attr-defined]
