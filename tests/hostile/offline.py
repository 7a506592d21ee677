"""The network cut off, for a while and in this process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
from huggingface_hub import constants


@contextmanager
def no_network() -> Iterator[list[str]]:
    """What asked for the network meanwhile, also where whoever asked swallows that it got none.

    The hub library's own switch, which the tests have on, is off.
    """
    asked: list[str] = []

    def refuse(*args: Any, **_: Any) -> NoReturn:
        asked.append(repr(args))
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            patch.delenv(name, raising=False)
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, refuse)
        for name in ("getaddrinfo", "gethostbyname", "create_connection"):
            patch.setattr(socket, name, refuse)
        yield asked
