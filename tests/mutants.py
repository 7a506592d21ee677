"""The faults of mutants.md: does the test that is named for each still catch it?

`python -m tests.mutants [NAME …]` puts one fault after the other into a copy of the checkout and runs the test there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "tests" / "mutants.md"
_ENTRY = re.compile(
    r"^## (?P<name>\S+)\n\n`(?P<file>[^`]+)`: .*?Caught by `(?P<test>[^`]+)`\.\n\n```diff\n(?P<diff>.*?)^```$",
    re.M | re.S,
)
_LEFT = (".git", ".venv*", "reports", "__pycache__", ".*_cache")


@dataclass(frozen=True)
class Mutant:
    """A change of one file: `before`, which stands in it once, becomes `after`. `test` fails with it."""

    name: str
    file: str
    before: str
    after: str
    test: str


def mutants() -> Iterator[Mutant]:
    """Every fault of the page."""
    for entry in _ENTRY.finditer(PAGE.read_text(encoding="utf-8")):
        before, after = (
            "\n".join(line[2:] for line in entry["diff"].splitlines() if line.startswith(sign)) for sign in "-+"
        )
        yield Mutant(entry["name"], entry["file"], before, after, entry["test"])


def is_caught(mutant: Mutant, checkout: Path) -> bool:
    """Whether the test fails in a checkout that has the fault, which is taken out again."""
    path = checkout / mutant.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(mutant.before, mutant.after), encoding="utf-8")
    try:
        environment = os.environ | {"PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
        test = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutant.test]
        return subprocess.run(test, cwd=checkout, env=environment, capture_output=True, check=False).returncode == 1
    finally:
        path.write_text(whole, encoding="utf-8")


def main(names: list[str]) -> int:
    """Print a line a fault; 1 if one is missed."""
    missed = 0
    with tempfile.TemporaryDirectory() as directory:
        checkout = Path(shutil.copytree(ROOT, Path(directory) / "checkout", ignore=shutil.ignore_patterns(*_LEFT)))
        for mutant in mutants():
            if names and mutant.name not in names:
                continue
            caught = is_caught(mutant, checkout)
            missed += not caught
            print(f"{'caught' if caught else 'MISSED':7} {mutant.name}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
