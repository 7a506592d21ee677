"""Files and directories that are whole or absent, also where several write one."""

import os
from pathlib import Path

import pytest

from tv.errors import InputError
from tv.runtime.atomic import replacing, replacing_directory


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


def _filled(path: Path, text: str) -> None:
    with replacing_directory(path, InputError) as temporary:
        (temporary / "file").write_text(text)


def test_a_directory_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for text in ("first", "second"):
        _filled(path, text)
        assert (path / "file").read_text() == text and os.listdir(tmp_path) == ["out"]
    with pytest.raises(KeyboardInterrupt), replacing_directory(path, InputError) as temporary:
        (temporary / "file").write_text("half")
        raise KeyboardInterrupt
    assert (path / "file").read_text() == "second" and os.listdir(tmp_path) == ["out"]


def test_the_old_directory_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "out", os.replace
    _filled(path, "first")

    def refuse(source: Path, target: Path) -> None:
        if source.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="No space left"):
        _filled(path, "second")
    assert (path / "file").read_text() == "first" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["out", "run[1]", "a*b"])
def test_what_killed_processes_left_is_cleared_and_what_living_ones_write_is_not(name: str, tmp_path: Path) -> None:
    dead, alive = 2**22 + 1, os.getppid()  # beyond the largest process number there is
    for left in (f".{name}.{dead}.tmp", f".{name}.{dead}.old", f".{name}.{alive}.tmp", f".{name}.mine.tmp"):
        (tmp_path / left).mkdir()
    (tmp_path / f".{name}.{dead}.old" / "file").write_text("replaced when it was killed")
    with pytest.raises(ZeroDivisionError), replacing_directory(tmp_path / name, InputError):
        raise ZeroDivisionError
    assert (tmp_path / name / "file").read_text() == "replaced when it was killed"
    assert sorted(os.listdir(tmp_path)) == sorted([f".{name}.{alive}.tmp", f".{name}.mine.tmp", name])
