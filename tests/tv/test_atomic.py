"""Files that are whole or absent, also where several write one."""

import os
from pathlib import Path

import pytest

from tv.atomic import replacing
from tv.errors import InputError


def test_a_block_that_ends_badly_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path, InputError) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_two_processes_that_write_one_path_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with replacing(path, InputError) as ours:
        ours.write_text("ours")
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(os, "getpid", lambda: -1)
            with replacing(path, InputError) as theirs:
                theirs.write_text("theirs")
        assert path.read_text() == "theirs"
    assert path.read_text() == "ours" and os.listdir(tmp_path) == ["file"]


def test_a_disk_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), replacing(tmp_path / "file" / "x", InputError) as to:
        to.write_text("")
