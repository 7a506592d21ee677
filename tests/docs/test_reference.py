"""The reference says what there is."""

import re
from pathlib import Path

import pytest

import probes
import tv
from probes.store.schemas import SCHEMAS
from tests.docs.commands import ROOT

REFERENCE = ROOT / "docs" / "reference"


def _sections(page: Path) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_is_explained(table: str) -> None:
    named = set(re.findall(r"`(\w+)`", _sections(REFERENCE / "tables.md")[f"`{table}`"]))
    if table == "link":  # as the page says, each with its interval
        named |= {f"{name}_{end}" for name in named for end in ("lo", "hi")}
    assert set(SCHEMAS[table].names) <= named


@pytest.mark.parametrize("package", [tv, probes], ids=["tv", "probes"])
def test_every_public_name_is_there(package: object) -> None:
    page = (REFERENCE / f"{package.__name__}.md").read_text(encoding="utf-8")  # type: ignore[attr-defined]
    functions = {name for name in package.__all__ if name[0].islower()}  # type: ignore[attr-defined]
    assert functions <= {line.rsplit(".", 1)[1] for line in page.splitlines() if line.startswith(":::")}
