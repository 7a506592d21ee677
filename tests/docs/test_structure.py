"""The pages that are made of the code say what the code says."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("maker", ["structure", "tables"])
def test_a_page_is_what_the_code_says(maker: str) -> None:
    made = runpy.run_path(str(ROOT / "docs" / f"{maker}.py"))
    assert made["page"]() == made["PAGE"].read_text(encoding="utf-8"), f"run python docs/{maker}.py"


def test_every_file_and_room_says_what_it_is_for() -> None:
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    assert text.count("| `") > 150
    assert "` |  |" not in text and "/`\n\n\n" not in text
