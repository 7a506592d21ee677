"""Every value of a YAML file has its line, and what cannot be read is one line of the error asked for."""

from pathlib import Path

import pytest

from tv.errors import InputError
from tv.runtime.yaml_file import MOST_BYTES, read_yaml

TEXT = """\
name: demo
shared: &shared
  a: 1
again: *shared
list:
- x
- {b: 2,
   c: 3}
"""


def test_values_have_the_lines_where_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(TEXT)
    file = read_yaml(path, InputError, "suite")
    assert file is not None and file.data["list"][1] == {"b": 2, "c": 3}
    places = [
        (),
        ("name",),
        ("shared", "a"),
        ("again", "a"),
        ("list", 0),
        ("list", 1, "c"),
        ("list", 9),
        ("no", "such"),
    ]
    assert [file.line(place) for place in places] == [1, 1, 3, 3, 6, 8, 5, 1]


def test_a_file_of_nothing_is_none(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "f.yaml", InputError, "suite") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: {b: 1,\n  b: 2}\n", "line 2: b: already given on line 1"),
        (b"a: !!python/name:os.system ''\n", "line 1: not valid YAML: could not determine a constructor"),
        (b"a: [1\n", "line 2: not valid YAML: expected ',' or ']'"),
        (b"[" * 5000, "not valid YAML: maximum recursion depth"),
        (b"a: \xff", "not UTF-8 text; save the suite as UTF-8"),
        (b"a" * (MOST_BYTES + 1), "1,048,577 bytes are no suite"),
    ],
    ids=["twin", "tag", "syntax", "deep", "bytes", "long"],
)
def test_what_cannot_be_read_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_yaml(path, InputError, "suite")
    assert str(raised.value).startswith(f"{path}: ") and said in str(raised.value) and "\n" not in str(raised.value)
