"""A judge behind a local endpoint: what it is sent, what is read, and what is said when it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tv.evaluation.judge import Judge, JudgeError


class Endpoint(HTTPServer):
    """Answers as it was told to, one answer a request and the last one from then on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, object]] = [(200, "Score: 7")]
        self.seen: list[tuple[str, dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        answers = self.server.answers
        code, content = answers.pop(0) if len(answers) > 1 else answers[0]
        message = {"choices": [{"message": {"content": content}}]} if isinstance(content, str) else content
        self.send_response(code)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()
        self.wfile.write(message if isinstance(message, bytes) else json.dumps(message).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_asked_and_what_is_read(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    endpoint.answers = [(200, "It is right.\n**Score:** 8.5\n")]
    judge = Judge(endpoint.url, "grader", "JUDGE_KEY")
    assert judge.score("What is {it}?", "A lamp.", "A light.") == 8.5
    path, headers, body = endpoint.seen[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "grader" and body["temperature"] == 0
    text = body["messages"][0]["content"]
    assert "What is {it}?" in text and "A lamp." in text and "A light." in text and "from 1 " in text
    monkeypatch.delenv("JUDGE_KEY")
    judge.score("q", "r")
    assert (
        "Authorization" not in endpoint.seen[1][1]
        and "for comparison" not in endpoint.seen[1][2]["messages"][0]["content"]
    )


def test_the_last_score_counts(endpoint: Endpoint) -> None:
    endpoint.answers = [(200, "A score: 2 would be unfair. Score: 6")]
    assert Judge(endpoint.url, "grader").score("q", "r") == 6


def test_a_busy_judge_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.answers = [(429, {}), (503, {}), (200, "Score: 3")]
    assert Judge(endpoint.url, "grader", wait=0.01).score("q", "r") == 3
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize(
    ("answer", "message", "requests"),
    [
        ((401, {}), r"refused \(HTTP 401\); put a valid key into the environment variable OPENAI_API_KEY", 1),
        ((404, {}), r"nothing there \(HTTP 404\); is grader there", 1),
        ((302, {}), "HTTP 302, after 1 attempts", 1),
        ((500, {}), "HTTP 500, after 2 attempts", 2),
        ((200, {"error": "no"}), "not what /chat/completions gives", 1),
        ((200, b"<html>"), "not what /chat/completions gives", 1),
        ((200, "Very good."), "gave no `Score: N` but 'Very good.'", 1),
        ((200, "Score: 11"), "gave 11, not from 1 to 10", 1),
    ],
)
def test_failures_are_said_in_a_line(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, object], message: str, requests: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.answers = [answer]
    with pytest.raises(JudgeError, match=message) as raised:
        Judge(endpoint.url, "grader", wait=0.01, attempts=2).score("q", "r")
    assert "\n" not in str(raised.value) and "secret" not in str(raised.value)
    assert len(endpoint.seen) == requests


def test_a_judge_that_is_not_there() -> None:
    with pytest.raises(JudgeError, match="cannot be reached"):
        Judge("http://127.0.0.1:9/v1", "grader", wait=0.01, attempts=2, timeout=1).score("q", "r")
    with pytest.raises(JudgeError, match="starts with http"):
        Judge("file:///etc", "grader").score("q", "r")
    with pytest.raises(JudgeError, match="rubric: 'answer' cannot be filled in; use question"):
        Judge("http://127.0.0.1:9", "grader", rubric="{answer}").score("q", "r")
