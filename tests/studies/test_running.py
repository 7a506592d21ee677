"""Stages that are done once, in processes of their own."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from studies.real_models.running import Journal, run
from studies.real_models.stage import Stage
from tv.errors import InputError


def _write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def _refuse() -> None:
    raise InputError("what is missing, and what to do")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stages(work: Path, broken: partial[None] | None = None) -> list[Stage]:
    first, second, third = (work / name for name in ("first", "second", "third"))
    return [
        Stage("first", partial(_write, first, "1"), 1, 10, 1, first),
        Stage("second", broken or partial(_write, second, "2"), 1, 10, 1, second),
        Stage("third", partial(_write, third, "3"), 1, 10, 1, third, ("second",)),
    ]


@pytest.mark.parametrize("broken", [_refuse, _die])
def test_what_fails_is_named_and_the_rest_goes_on_later(tmp_path: Path, broken: partial[None]) -> None:
    said: list[str] = []
    with pytest.raises(InputError, match="1 stages failed: second;"):
        run(_stages(tmp_path, partial(broken)), tmp_path, 1.0, 2, said.append)
    assert any("logs/second.txt" in line for line in said)
    assert not (tmp_path / "third").exists()

    _write(tmp_path / "journal.jsonl", '{"stage": "second", "beg')  # and a process was killed while it wrote
    _write(tmp_path / "journal.jsonl", "\n")
    done = run(_stages(tmp_path), tmp_path, 1.0, 2, said.append)
    assert [(row.stage, row.restarts) for row in done] == [("first", 0), ("second", 1), ("third", 0)]
    assert (tmp_path / "first").read_text() == "1"  # not done again
    assert all(row.cpu > 0 and row.memory > 0 and row.disk > 0 for row in done)
    assert [*Journal(tmp_path).done()] == ["first", "second", "third"]
