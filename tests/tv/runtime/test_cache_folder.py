"""Where caches lie, and that a file of one is whole or not there."""

from pathlib import Path

import pytest

from tv.runtime import cache_folder as caches
from tv.runtime.cache_folder import cache_folder, read_cached, write_cached


def test_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TUNING_PROBES_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("kind") == tmp_path / "home" / ".cache" / "tuning-probes" / "kind"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("kind") == tmp_path / "xdg" / "tuning-probes" / "kind"
    monkeypatch.setenv("TUNING_PROBES_CACHE", str(tmp_path / "own"))
    assert cache_folder("kind") == tmp_path / "own" / "kind"
    monkeypatch.setenv("TUNING_PROBES_CACHE", "off")
    assert cache_folder("kind") is None


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    value = {"ä": [1, 2.5, None, {"b": True}]}
    write_cached(tmp_path / "folder" / "a.json", value)
    assert read_cached(tmp_path / "folder" / "a.json") == value
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.json"]


def test_what_is_missing_or_damaged_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert read_cached(file) is None
    write_cached(file, {"a": 1})
    file.write_text(file.read_text().replace("1", "2"))
    assert read_cached(file) is None
    file.write_bytes(b"\xff\xfe")
    assert read_cached(file) is None


def test_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(caches, "_KEPT", 2)
    for age, name in enumerate("abc"):
        write_cached(tmp_path / f"{name}.json", name)
        os.utime(tmp_path / f"{name}.json", (1000 + age, 1000 + age))
    write_cached(tmp_path / "d.json", "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "d.json"]
