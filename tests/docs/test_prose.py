"""What people read is checked: a planted phrase is found wherever a person would meet it, and nowhere else."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAID = "another way takes"
FILES = {
    "README.md": f"# Title\n\nBroken over\nlines: another\nway takes.\n\n```sh\necho {SAID}\n```\n",
    "docs/how-to/page.md": "# Page\n\nA very unique way.\n\n```text\nA very unique way.\n```\n\n`very unique`\n",
    "probes/said.py": f'"""First line.\n\n{SAID.title()}.\n"""\n\n# {SAID}\nn = 1\nsaid = f"{{n}} times {SAID}"\n',
    "tv/page.js": f'say("{SAID}");\n',
    "tests/test_it.py": f'"""{SAID}"""\n',
}


def test_a_planted_phrase_is_found_wherever_a_person_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("proselint")
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = runpy.run_path(str(ROOT / "docs" / "prose.py"))["problems"](tmp_path)
    banned = [line.split(": ")[0] for line in found if SAID in line.lower()]
    assert banned == ["README.md:4", "README.md:8", "probes/said.py:3", "probes/said.py:8", "tv/page.js:1"]
    linted = [line.split(": ")[0] for line in found if SAID not in line.lower()]
    assert set(linted) == {"docs/how-to/page.md:3"}


def test_llms_txt_lists_every_page_and_only_files_that_exist() -> None:
    text = (ROOT / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# .+\n\n> .+", text)
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert len(linked) == len(set(linked)) and all((ROOT / name).is_file() for name in linked)
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - set(linked) == {"docs/index.md"}
