"""What the effects are checked against: other methods, and what must hold for any models."""

from __future__ import annotations

from collections.abc import Iterator

from probes.reporting.chapter import Chapter, panel
from probes.reporting.evidence import one_metric
from probes.reporting.panel import Panel, Table
from probes.reporting.words import interval, number
from probes.store.schemas import ALL_DOMAINS


@panel("causes", order=70, needs=["agreement"])
def agreement(chapter: Chapter) -> Iterator[Panel]:
    """Rank correlations between methods, beside each method's split-half correlation."""
    rows = one_metric(chapter.rows("agreement"))
    rows = rows[rows.domain == ALL_DOMAINS]
    if rows.empty:
        return
    columns = ("granularity", "method", "against", "ρ", "95 % interval", "units", "split-half ρ")
    cells = [
        (
            row["granularity"],
            row["method"],
            row["reference"],
            _two_digits(row["rho"]),
            interval(row["lo"], row["hi"], _two_digits),
            str(row["n"]),
            _two_digits(row["split_half"]),
        )
        for row in rows.to_dict("records")
    ]
    note = (
        "Spearman's ρ between two methods' effects over the same units, all prompts. Split-half: one method against "
        "itself on the other half of the prompts, which no agreement can be expected to exceed by much."
    )
    table = Table("agreement", "Agreement of methods", columns, cells)
    yield Panel("Do the methods agree?", note, [], tables=[table])


@panel("causes", order=75, needs=["sampled"])
def sampled(chapter: Chapter) -> Iterator[Panel]:
    """How path ranks a sample of the units that it does not lead with, where only some units were moved."""
    rows = one_metric(chapter.rows("sampled"))
    rows = rows[rows.domain == ALL_DOMAINS]
    if rows.empty:
        return
    columns = ("granularity", "method", "moved", "ρ with path", "95 % interval", "largest drawn", "smallest leading")
    cells = [
        (
            row["granularity"],
            row["method"],
            f"{row['n_leading']} leading and {row['n']} drawn of {row['n_leading'] + row['n'] + row['left_out']}",
            _two_digits(row["rho"]),
            interval(row["lo"], row["hi"], _two_digits),
            number(row["largest_sampled"]),
            number(row["smallest_leading"]),
        )
        for row in rows.to_dict("records")
    ]
    note = (
        "Graft and revert moved the units that path leads with, and some drawn by chance from all others; nothing is "
        "said of the rest (exact: all moves every unit). ρ: how path and the method rank the drawn ones, all prompts. "
        "Where the largest drawn |effect| is above the smallest of the leading ones, path has missed units like it."
    )
    table = Table("sampled", "What the units that were not moved may hide", columns, cells)
    yield Panel("Did path choose the right units?", note, [], tables=[table])


@panel("causes", order=80, needs=["checks"])
def checks(chapter: Chapter) -> Iterator[Panel]:
    """What was checked, and how it came out."""
    rows = chapter.rows("checks")
    if rows.empty:
        return
    columns = ("check", "method", "prompts", "value", "bound", "verdict")
    cells = [
        (
            str(row["check"]).replace("_", " "),
            row["method"] or "–",
            row["domain"],
            number(row["value"]),
            number(row["bound"]),
            "holds" if row["holds"] else "DOES NOT HOLD",
        )
        for row in rows.to_dict("records")
    ]
    note = (
        "Endpoint: moving everything gives the other model. No-op: patching a model with itself changes nothing. "
        "Completeness: shares sum to the change, where there is one. Weights restored: the models are bit for bit as "
        "they were."
    )
    note += f" Left out, as it could not be proved on these models: {chapter.left_out}." if chapter.left_out else ""
    table = Table("checks", "What was checked, and how it came out", columns, cells)
    yield Panel("Checks", note, [], tables=[table])


def _two_digits(value: float | None) -> str:
    return number(value, 2)
