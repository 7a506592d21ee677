"""Calling a console command in this process, as a person would from a shell."""

import sys
from collections.abc import Callable

import pytest

from tv.cli.terminal import begin


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], main: Callable[[], None], *arguments: object
) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `main` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    begin(quiet=False, json=False)  # what follows in this process speaks as if nothing had been asked for
    streams = capsys.readouterr()
    return int(ended.value.code or 0), streams.out, streams.err
