"""A small run of the embedded pair, and what answers for it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import probes
from probes.viewing import server
from probes.viewing.session import Session

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> probes.Run:
    settings = {
        "prompts": [{"file": ROOT / "data" / "prompts" / f"{name}.jsonl", "limit": 2} for name in ("medical", "math")],
        "measure": ["behaviour"],
    }
    out = tmp_path_factory.mktemp("viewing") / "run"
    run = probes.run(ROOT / "data/suites/demo.yaml", settings=settings, stages=("capture",), out=out)
    (out / "report.html").write_text("<p id='here'></p><script>here.textContent = 'drawn by its script'</script>")
    return run


@pytest.fixture(scope="session")
def session(run: probes.Run) -> Session:
    return Session([run])


@pytest.fixture(scope="module")
def served(session: Session) -> Iterator[str]:
    """The address of the page of a server that runs, token and all."""
    kept: list[server.Server] = []
    addresses: list[str] = []
    listens = threading.Event()

    class Kept(server.Server):
        def __init__(self, config: uvicorn.Config, session: Session) -> None:
            super().__init__(config, session)
            kept.append(self)

    def told(address: str) -> None:
        addresses.append(address)
        listens.set()

    patch = pytest.MonkeyPatch()
    patch.setattr(server, "Server", Kept)
    work: dict[str, Any] = {"open_browser": False, "told": told}
    thread = threading.Thread(target=server.serve, args=(session,), kwargs=work)
    thread.start()
    assert listens.wait(30)
    yield addresses[0]
    kept[0].should_exit = True
    thread.join(30)
    patch.undo()
    assert not thread.is_alive()
