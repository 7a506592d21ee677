"""Nobody without the token learns anything, and the token goes into no log."""

import http.client
import json
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import probes
from probes.errors import RunError
from probes.viewing import server
from probes.viewing.guard import Tickets
from probes.viewing.session import Session

JSON = {"Content-Type": "application/json"}


class Client:
    """Requests to one server, with its token or without."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        assert parts.hostname == "127.0.0.1" and parts.port is not None
        self.port, self.token = parts.port, parts.fragment.removeprefix("token=")

    def __call__(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}, text

    def ask(self, request: Any, **headers: str) -> tuple[int, Any]:
        own = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        status, _, text = self("/ask", "POST", json.dumps(request).encode(), **own | headers)
        return status, json.loads(text) if status == 200 else text


@pytest.fixture
def client(served: str) -> Client:
    return Client(served)


def test_every_path_asks_for_the_token(client: Client, run: probes.Run) -> None:
    paths = ("/docs", "/redoc", "/openapi.json", "/ask", "/report/x", "/report/", "/view.js", "/static/x", "//", "/?a")
    for path in paths[:-1]:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT"):
            assert client(path, method)[0] == 401, (path, method)
    for wrong in ("Bearer ", "Bearer x", f"bearer {client.token}", client.token, f"Bearer {client.token} "[:-2]):
        assert client("/ask", "POST", b"{}", Authorization=wrong, **JSON)[0] == 401, wrong
    assert client(f"/ask?token={client.token}", "POST", b"{}", **JSON)[0] == 401
    assert client("/", "POST")[0] == 401
    status, headers, text = client("/")  # without data, for everyone: the token comes after it
    assert status == 200 and client.token not in text and str(run.path) not in text
    assert "default-src 'none'" in headers["content-security-policy"] and "unsafe" not in str(headers)
    assert "access-control-allow-origin" not in headers
    assert "http" not in text.replace("http-equiv", ""), "it loads nothing from elsewhere"
    assert client.ask({"do": "open"})[0] == 200


def test_the_host_is_checked_before_all_else(client: Client) -> None:
    for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1", f"127.0.0.1:{client.port + 1}", ""):
        assert client("/", Host=host)[0] == 400, host
        assert client.ask({"do": "open"}, Host=host)[0] == 400
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert client("/", Host=f"{host}:{client.port}")[0] == 200


def test_only_small_json_objects_are_read(client: Client) -> None:
    assert client.ask({"do": "open"}, Content_Type="text/plain")[0] == 415
    assert client.ask([1])[0] == 400
    own = {"Authorization": f"Bearer {client.token}", "Content-Type": "application/json"}
    assert client("/ask", "POST", b"{", **own)[0] == 400
    assert client("/ask", "POST", b"[" * 100_000, **own)[0] == 400
    assert client("/ask", "POST", b'"' + b"a" * server.MOST_BYTES + b'"', **own)[0] == 413
    assert "request: " in client.ask({"do": "x"})[1]["error"]


def test_a_report_opens_once_in_an_origin_of_its_own(client: Client, run: probes.Run) -> None:
    assert client.ask({"do": "report", "run": 5})[1]["error"]
    address = client.ask({"do": "report", "run": 0})[1]["address"]
    status, headers, text = client(address)
    assert (status, text) == (200, (Path(str(run.path)) / "report.html").read_text())
    assert headers["content-security-policy"].startswith("sandbox allow-scripts allow-downloads; default-src 'none'")
    assert client(address)[0] == 401


def test_a_ticket_does_not_last() -> None:
    now = [0.0]
    tickets = Tickets(clock=lambda: now[0])
    early, late = tickets.issue("a"), tickets.issue("b")
    assert tickets.is_valid(early) and tickets.use(early) == "a" and not tickets.is_valid(early)
    now[0] = 61
    assert not tickets.is_valid(late)
    with pytest.raises(KeyError):
        tickets.use(late)


def test_the_token_is_in_no_log_and_on_no_command_line(
    session: Session,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.DEBUG)
    opened: list[tuple[str, str, int]] = []

    def open_page(address: str) -> None:
        path = Path(address.removeprefix("file://"))
        opened.append((address, path.read_text(), stat.S_IMODE(os.stat(path).st_mode)))

    ran: list[server.uvicorn.Config] = []

    class Asked(server.Server):
        def run(self, sockets: Any = None) -> None:
            ran.append(self.config)
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "Server", Asked)
    monkeypatch.setattr(server.webbrowser, "open", open_page)
    told: list[str] = []
    server.serve(session, told=told.append)  # Ctrl-C ends it without a word
    token = told[0].rpartition("=")[2]
    (address, page, mode), (config,) = opened[0], ran
    assert len(token) > 40 and token not in address and told[0] in page and mode == 0o600
    assert not config.access_log
    assert token not in caplog.text and token not in "".join(capfd.readouterr())


def test_requests_leave_no_line(
    client: Client, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    client.ask({"do": "open"})
    client("/docs")
    with socket.create_connection(("127.0.0.1", client.port)) as gone:  # in the middle of a request
        head = f"POST /ask HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nAuthorization: Bearer {client.token}\r\n"
        gone.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode())
    client.ask({"do": "open"})
    said = "".join(capfd.readouterr()) + caplog.text
    assert client.token not in said and "/ask" not in said and "/docs" not in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_told(client: Client, session: Session) -> None:
    with pytest.raises(RunError, match=rf"port {client.port}: address already in use; choose another"):
        server.serve(session, port=client.port, open_browser=False)
