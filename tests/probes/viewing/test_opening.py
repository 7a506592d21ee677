"""The widget of a notebook, and what is said where a package is missing."""

from pathlib import Path
from typing import Any

import pytest

import probes
from probes.cli import main
from probes.errors import RunError
from probes.viewing import packages, server
from probes.viewing.session import Session
from probes.viewing.widget import View
from tests.command import call


def test_the_widget_answers_its_messages(run: probes.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    view = run.view()
    assert isinstance(view, View)
    sent: list[Any] = []
    monkeypatch.setattr(view, "send", sent.append)

    def ask(number: int, request: dict[str, Any]) -> Any:
        content = {"data": {"method": "custom", "content": {"id": number, "request": request}}}
        view._handle_msg({"content": content, "buffers": []})
        return sent.pop()

    reply = ask(7, {"do": "open"})
    assert reply["id"] == 7 and reply["reply"]["runs"][0]["tuned"] == ["medical", "math"]
    asked = {"do": "answer", "run": 0, "tuned": "medical", "prompt": "Seven and five make", "tokens": 2}
    assert len(ask(8, asked)["reply"]["answers"]["tuned"]["tokens"]) == 2
    assert "the prompt is empty" in ask(9, asked | {"prompt": ""})["reply"]["error"]


def test_the_widget_loads_nothing_from_elsewhere() -> None:
    script = str(View._esm)
    assert "export default" in script and "://" not in script and "innerHTML" not in script
    assert "://" not in str(View._css)


def test_what_is_missing_is_told_with_what_to_do(run: probes.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="no run is given"):
        probes.view()
    with pytest.raises(RunError, match="not a run directory"):
        probes.view(Path("nowhere"))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"needs anywidget: pip install 'tuning-probes\[view\]'"):
        probes.view(run)


def test_the_command_serves_the_runs_that_are_there(
    run: probes.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[tuple[list[str], dict[str, Any]]] = []

    def serve(session: Session, *, told: Any, **named: Any) -> None:
        served.append(([str(one.path) for one in session.runs], named))
        told("http://127.0.0.1:1/#token=secret")

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.chdir(tmp_path)
    status, out, err = call(monkeypatch, capsys, main, "view", "--no-open")
    assert status == 2 and "there is no run in it; name one" in err
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "mine").symlink_to(str(run.path))
    status, out, err = call(monkeypatch, capsys, main, "view", "--no-open", "--port", "0")
    assert (status, out) == (0, "http://127.0.0.1:1/#token=secret\n") and "secret" not in err
    assert served == [(["reports/mine"], {"port": 0, "open_browser": False})]
