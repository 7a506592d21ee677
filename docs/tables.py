"""Write docs/reference/tables.md out of what is declared of every column: `python docs/tables.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from probes.store.schemas import PARTITIONS, SCHEMAS, form_of
from tv.columns import Column

PAGE = Path(__file__).resolve().parent / "reference" / "tables.md"
_HEAD = """# Tables

The tables of a run. `run["changes"]` is one of them as a pandas DataFrame; [measures](../measures.md) and
[attribution](../attribution.md) explain the numbers. A value that was not measured is null, and reads as NaN.

A column with an *interval* is followed by `_lo` and `_hi`, its 95 % interval over prompts. The column *null* says what
the measure would be without any preference: another column, or a number. `head`, `expert` and `neuron` are −1 if a row
is about all of them; `layer` is −1 for the embedding and `n_layers` for the final norm and the unembedding.

This page is generated from the declarations in the code (`python docs/tables.py`), as are the tables' schemas, the
words of the report and the colours of figures.
"""


def page() -> str:
    """The page: a section a table, a line a column."""
    return _HEAD + "".join(_section(name) for name in SCHEMAS)


def _section(name: str) -> str:
    form, keys = form_of(name), [f"`{key}`" for key in PARTITIONS.get(name, ())]
    split = f" Its directories are split by {', '.join(keys)}." if keys else ""
    head = "| column | type | unit | what it says | null |\n| --- | --- | --- | --- | --- |\n"
    return f"\n## `{name}`\n\nOne row per {form.rows}.{split}\n\n{head}{''.join(map(_row, form))}"


def _row(column: Column) -> str:
    names = [column.name, *(f"{column.name}_{end}" for end in ("lo", "hi") if column.interval)]
    null = f"`{column.null}`" if isinstance(column.null, str) else "" if column.null is None else f"{column.null:g}"
    cells = (", ".join(f"`{name}`" for name in names), column.kind, column.unit, column.means, null)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if page() == PAGE.read_text(encoding="utf-8") else f"{PAGE.name}: run python docs/tables.py")
    PAGE.write_text(page(), encoding="utf-8")
