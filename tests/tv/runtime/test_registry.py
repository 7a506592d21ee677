"""Functions that register themselves: found where they are, in a settled order, each name once."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tv.errors import InputError
from tv.runtime import registry
from tv.runtime.registry import Registry


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A package whose modules, `late` and `early`, register three greetings."""
    name = f"room_{abs(hash(request.node.nodeid))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(
        f"from tv.runtime.registry import Registry\ngreetings = Registry('greeting', {name!r})\n"
    )
    head = f"from {name} import greetings\n"
    (tmp_path / name / "late.py").write_text(
        head + "@greetings.register('z')\ndef z(): return 1\n@greetings.register('a')\ndef a(): return 2\n"
    )
    (tmp_path / name / "early.py").write_text(head + "@greetings.register('m')\ndef m(): return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_the_files_of_a_room_are_found_and_keep_their_order(room: str) -> None:
    greetings = __import__(room).greetings
    __import__(f"{room}.late")  # whoever is imported first
    assert list(greetings) == ["m", "z", "a"] and len(greetings) == 3
    assert [greetings[name]() for name in greetings] == [3, 1, 2]


def test_a_file_is_imported_when_the_registry_is_first_asked(room: str) -> None:
    greetings = __import__(room).greetings
    assert f"{room}.early" not in sys.modules
    assert "m" in greetings and f"{room}.early" in sys.modules


def test_an_unknown_name_is_one_line_that_lists_the_others(room: str) -> None:
    with pytest.raises(InputError, match="no greeting 'hello'; there are m, z, a"):
        __import__(room).greetings.one("hello")


def test_a_name_is_taken_once(room: str) -> None:
    greetings = __import__(room).greetings
    assert "a" in greetings
    with pytest.raises(ValueError, match=rf"greeting 'a' is registered by {room}.late and by elsewhere"):
        greetings.add("a", len, "elsewhere")


def test_another_package_adds_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    farewells: Registry[object] = Registry("farewell")
    monkeypatch.setattr(registry, "farewells", farewells, raising=False)
    (tmp_path / "plugin_of_farewells.py").write_text(
        "from tv.runtime.registry import farewells\n@farewells.register('bye')\ndef bye(): return 'bye'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint("farewells", "plugin_of_farewells", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.GROUP else [])
    assert list(farewells) == ["bye"]


def test_a_file_that_does_not_name_the_decorator_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "room_of_few"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "heavy.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / name / "light.py").write_text(
        "from tv.runtime.registry import few\n@few.greet('l')\ndef l(): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    few: Registry[object] = Registry("greeting", name, by="greet")
    few.greet = few.register  # type: ignore[attr-defined]
    monkeypatch.setattr(registry, "few", few, raising=False)
    assert list(few) == ["l"]
