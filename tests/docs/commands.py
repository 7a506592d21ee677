"""The commands that a page tells its reader to run."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / part / "README.md" for part in (".", "data", "examples")), *(ROOT / "docs").rglob("*.md")])
_MARK = re.compile(r"<!-- only parsed: .+ -->")


@dataclass(frozen=True)
class Command:
    """One command line, as argv. `runs` is false where the page says that it cannot run just anywhere."""

    line: int
    argv: tuple[str, ...]
    runs: bool


def commands(page: Path) -> list[Command]:
    """Every command in the page's shell blocks, in order; of a pipe the first, of a comment nothing."""
    return [
        Command(line, tuple(argv), runs)
        for line, text, runs in _lines(page.read_text(encoding="utf-8"))
        if (argv := _ours(shlex.split(text, comments=True)))
    ]


def _lines(text: str) -> Iterator[tuple[int, str, bool]]:
    inside, runs, kept = False, True, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            inside = line == "```sh"
            runs = runs if inside else True
        elif inside:
            kept += line.removesuffix("\\")
            if not line.endswith("\\"):
                yield number, kept, runs
                kept = ""
        elif line.strip():
            runs = not _MARK.fullmatch(line)


def _ours(argv: list[str]) -> list[str]:
    """Without the environment before it, and without what the shell does with what comes out."""
    while argv and re.fullmatch(r"[A-Z_]+=.*", argv[0]):
        argv = argv[1:]
    end = next((i for i, word in enumerate(argv) if word in ("|", ">", "2>")), len(argv))
    return argv[:end]
