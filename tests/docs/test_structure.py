"""docs/structure.md says of every file what the file says of itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_what_the_files_say() -> None:
    checked = subprocess.run(
        [sys.executable, ROOT / "docs" / "structure.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_every_file_and_room_says_what_it_is_for() -> None:
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    assert text.count("| `") > 150
    assert "` |  |" not in text and "/`\n\n\n" not in text
