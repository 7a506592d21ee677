"""What `tv apply --search` prints of a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tv.cli.options import named
from tv.cli.terminal import Shown, bar, number, print_notes, print_table, say, wrote

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 12


def search_and_write(
    base: str, vectors: list[Any], search: list[Path], output: Path, *, device: str, **settings: Any
) -> None:
    """Search, print the comparison, and say what was written."""
    import tv
    from tv.choosing.writing import beside
    from tv.prompts.sets import PromptSet

    with bar("search") as progress:
        compute = tv.Compute(device, progress=progress)
        domains = [PromptSet(file=file) for file in search]
        searched = tv.search(base, named(vectors), domains, out=output, compute=compute, **settings)
    _print(searched.table, [domain.name for domain in domains])
    for other in ("plain", "scaled"):
        _say(searched.table, other)
    if len(searched.scales) <= _SHOWN:
        rows: list[list[object]] = [list(row) for row in searched.scales.itertuples(index=False)]
        print_table("found on all prompts", ["vector", "part", "λ or value"], rows)
    print_notes(searched.notes)
    wrote(beside(output, None, "search"), "tables as .csv, finished evaluations; rerun to resume")
    wrote(output, "λ found on all prompts; the model card says what to expect")


def _print(table: pd.DataFrame, domains: list[str]) -> None:
    rows: list[list[object]] = []
    for row in table.to_dict("records"):
        rows.append([row["way"], _cell(row, "value", "lo", "hi"), *(_cell(row, name) for name in domains)])
    title = "share of the best single vector's gain that is kept, on held-out prompts"
    print_table(title, ["way of adding", "mean over domains", *domains], rows)


def _cell(row: dict[str, Any], name: str, low: str = "", high: str = "") -> Shown:
    ends = [float(row[key]) for key in (name, low or f"{name}_lo", high or f"{name}_hi")]
    inside = f" [{number(ends[1])}, {number(ends[2])}]" if ends[1] == ends[1] else ""
    return Shown(ends, f"{number(ends[0])}{inside}")


def _say(table: pd.DataFrame, other: str) -> None:
    from tv.choosing.search import FOUND, PLAIN, SCALED

    row = table.set_index("way").loc[FOUND]
    gap, lo, hi, p = (float(row[f"over_{other}{end}"]) for end in ("", "_lo", "_hi", "_p"))
    name = PLAIN if other == "plain" else f"{SCALED}, searched for with the same budget,"
    words = "is better than" if lo > 0 else "is worse than" if hi < 0 else "is not distinguishable from"
    say(f"the result {words} {name} by {number(gap)} [{number(lo)}, {number(hi)}], p = {number(p)}")
