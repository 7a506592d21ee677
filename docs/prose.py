"""Check what people read: `python docs/prose.py`.

proselint reads the Markdown. No phrase of docs/banned.txt may stand in Markdown, in the strings of tv/ and probes/, or
in templates and scripts there.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BANNED = ROOT / "docs" / "banned.txt"
#: What proselint is not asked for, and why.
_OFF = {
    "typography.diacritical_marks": "“resume” is a verb here",
    "typography.symbols.curly_quotes": "straight quotes are what keyboards have",
}
_CODE = re.compile(r"^( *)```.*?^\1```$|<!--.*?-->", re.MULTILINE | re.DOTALL)


def problems(root: Path = ROOT) -> list[str]:
    """A line for each thing to mend: where it is, and what to write instead."""
    instead = _instead(BANNED.read_text(encoding="utf-8"))
    patterns = [r"\s+".join(re.escape(word) for word in phrase.split()) for phrase in instead]
    banned = re.compile(rf"\b(?:{'|'.join(patterns)})\b", re.IGNORECASE)
    found: list[str] = []
    for path in _files(root):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        for line, piece in _strings(text) if path.suffix == ".py" else [(1, text)]:
            for match in banned.finditer(piece):
                place, phrase = line + piece.count("\n", 0, match.start()), " ".join(match[0].split())
                found.append(f"{name}:{place}: “{phrase}”: write “{instead[phrase.lower()]}”")
        if path.suffix == ".md":
            found += [f"{name}:{place}: {message}" for place, message in _linted(text)]
    return list(dict.fromkeys(found))


def _files(root: Path) -> list[Path]:
    tops = [*root.glob("*.md"), root / "llms.txt"]
    pages = chain.from_iterable((root / folder).rglob("*.md") for folder in ("docs", "examples", "data", "studies"))
    code = chain.from_iterable((root / package).rglob("*") for package in ("tv", "probes"))
    files = [*tops, *pages, *(path for path in code if path.suffix in (".py", ".html", ".js"))]
    return sorted(path for path in files if path.is_file())


def _instead(text: str) -> dict[str, str]:
    """Of each line `phrase => what to write` both halves."""
    lines = [line.split(" => ") for line in text.splitlines() if line and not line.startswith("#")]
    return {phrase.lower(): instead for phrase, instead in lines}


def _strings(code: str) -> Iterator[tuple[int, str]]:
    """Every string with its line; of an f-string the whole, with … where a value stands."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def _linted(text: str) -> list[tuple[int, str]]:
    """What proselint says of the prose, by line."""
    from proselint.checks import __register__
    from proselint.config import DEFAULT
    from proselint.registry import CheckRegistry
    from proselint.tools import LintFile

    registry = CheckRegistry()
    if not registry.checks:
        registry.register_many(__register__)
    checks = dict.fromkeys(_OFF, False) | DEFAULT["checks"]
    results = LintFile("page", _prose(text)).lint({"max_errors": 1000, "checks": checks})
    return [(result.pos[0], result.check_result.message) for result in results]


def _prose(markdown: str) -> str:
    """Line by line what is neither code nor table; what stands in backticks is left out."""
    text = _CODE.sub(lambda code: "\n" * code[0].count("\n"), markdown)
    lines = ["" if line.startswith(("|", "    ")) else line for line in text.split("\n")]
    text = "\n".join(f"{line}." if line.startswith("#") else line for line in lines)
    text = re.sub(r"`[^`]*`", lambda code: "«»" + "\n" * code[0].count("\n"), text)
    return re.sub(r"\]\([^)\n]*\)", "]", text)


if __name__ == "__main__":
    found = problems()
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(1 if found else 0)
