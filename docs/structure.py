"""Write the tables of docs/structure.md out of the files' own first lines: `python docs/structure.py`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "structure.md"
_BEGIN, _END = "<!-- files: {} -->\n", "<!-- end -->\n"


def page() -> str:
    """The page as it should be: its prose as it is, and a table of files for each package."""
    text = PAGE.read_text(encoding="utf-8")
    for package in ("tv", "probes"):
        head, rest = text.split(_BEGIN.format(package))
        _, tail = rest.split(_END, 1)
        text = head + _BEGIN.format(package) + "\n" + "".join(_rooms(ROOT / package)) + _END + tail
    return text


def _rooms(package: Path) -> list[str]:
    folders = [package, *sorted(path.parent for path in package.rglob("__init__.py") if path.parent != package)]
    return [_room(folder) for folder in folders]


def _room(folder: Path) -> str:
    """A heading, what the room is for, and a line a file."""
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))
    rows = "".join(f"| `{path.name}` | {_first_line(path)} |\n" for path in files)
    name = folder.relative_to(ROOT).as_posix()
    about = _first_line(folder / "__init__.py")
    return f"### `{name}/`\n\n{about}\n\n" + (f"| file | what it holds |\n| --- | --- |\n{rows}\n" if rows else "")


def _first_line(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if page() == PAGE.read_text(encoding="utf-8") else "docs/structure.md: run python docs/structure.py")
    PAGE.write_text(page(), encoding="utf-8")
