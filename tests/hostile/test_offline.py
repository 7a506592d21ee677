"""A run of local paths asks nothing of the network, and nothing tells anybody of its use."""

import os
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest

from probes import cli
from tests.hostile.forked import command, forked
from tests.pairs import build_pair, write_suite


def _cut() -> None:
    def refuse(*args: Any, **_: Any) -> NoReturn:
        os.write(2, f"NETWORK {args}\n".encode())  # also where whoever asked swallows what is raised
        raise OSError("no network")

    socket.socket.connect = socket.socket.connect_ex = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse  # type: ignore[assignment]


def test_a_run_of_local_paths_needs_no_network(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, *build_pair(tmp_path), noise_floor=False, bootstrap=20)

    def work() -> None:
        _cut()
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            os.environ.pop(name, None)
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_OFFLINE = False
        command(cli.main, "run", suite, "--out", tmp_path / "run")()

    ended = forked(work)
    assert ended.status == 0, ended
    assert "NETWORK" not in ended.err


@pytest.mark.parametrize("switch", ["HF_HUB_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "DO_NOT_TRACK"])
def test_the_libraries_report_no_use(switch: str) -> None:
    import tv  # noqa: F401

    assert os.environ[switch] == ("0" if switch == "RAY_USAGE_STATS_ENABLED" else "1")


def test_the_hub_library_heard_it() -> None:
    from huggingface_hub import constants

    import tv  # noqa: F401

    assert constants.HF_HUB_DISABLE_TELEMETRY
