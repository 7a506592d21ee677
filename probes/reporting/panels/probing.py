"""Linear probes: what is readable in each layer of both models, and whether its direction turned."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.reporting.chapter import Chapter, panel
from probes.reporting.figures import Plot
from probes.reporting.layer_lines import Line, over_layers
from probes.reporting.panel import Figure, Panel, Table
from probes.reporting.words import number


@panel("directions", order=20, needs=["probe_accuracy", "probe_directions"])
def probing(chapter: Chapter) -> Iterator[Panel]:
    """Accuracy and turn by layer, one version for each label and site."""
    accuracy, directions = (chapter.rows(table) for table in ("probe_accuracy", "probe_directions"))
    if directions.empty:
        return
    names: list[str] = []
    rows: list[list[str]] = []
    plots: tuple[list[Plot], list[Plot]] = ([], [])
    for (label, site), turned in directions.sort_values("layer").groupby(["label", "site"], sort=False):
        read = accuracy[(accuracy.label == label) & (accuracy.site == site)].sort_values("layer")
        names.append(f"{label} at {site}")
        plots[0].append(_accuracy(read, chapter.evidence.tuned))
        plots[1].append(_turn(turned))
        rows += [_row(row) for row in turned.to_dict("records")]
    note = (
        "A probe is fitted on some clusters of prompts and reads others. Above the grey lines the label is readable: "
        "“shuffled labels” is the same probe where labels were moved among clusters; “largest class” needs no states. "
        "Readable is not used: a model may never read what a probe reads. Right: the cosine of both models' probes, "
        "each half of the prompts against the other, corrected for how noisy probes are; 1 is the same direction. The "
        "grey lines are the base in another precision, the base + random T, and two halves of the base. It misleads "
        f"where probes are noisy ({_CANNOT}), where labels go with the wording of prompts rather than with what is "
        "asked, and where there are fewer prompts than dimensions."
    )
    yield Panel(
        "What can be read, and did tuning turn its direction?",
        note,
        [
            Figure("probe-accuracy", "Held-out accuracy (of a number: R²)", plots[0]),
            Figure("probe-turn", "Corrected cosine of the probes of base and tuned", plots[1]),
        ],
        names,
        "label",
        tables=[Table("probe-table", "Probes, layer by layer", _COLUMNS, rows)],
    )


_CANNOT = "the interval is wide, and the words are “cannot tell”"
_COLUMNS = (
    "label",
    "site",
    "layer",
    "base reads",
    "tuned reads",
    "change",
    "its 95 %",
    "q",
    "change, rounded",
    "change, random T",
    "base's probe loses",
    "corrected cosine",
    "its 95 %",
    "cosine, rounded",
    "cosine, random T",
    "direction",
)


def _accuracy(read: pd.DataFrame, tuned: str) -> Plot:
    def of(model: str, fitted_on: str) -> pd.DataFrame:
        return read[(read.model == model) & (read.fitted_on == fitted_on)]

    ends = ("accuracy_lo", "accuracy_hi")
    lines = [
        Line("base", of("base", "base"), "accuracy", ends),
        Line(tuned, of(tuned, tuned), "accuracy", ends),
        Line(f"the base's probe on {tuned}", of(tuned, "base"), "accuracy", ends),
        Line("shuffled labels, base", of("base", "base"), "control", null=True),
        Line("shuffled labels, tuned", of(tuned, tuned), "control", null=True),
        Line("largest class", of("base", "base"), "majority", null=True),
    ]
    return over_layers(lines, "accuracy")


def _turn(turned: pd.DataFrame) -> Plot:
    lines = [
        Line("corrected cosine", turned, "corrected", ("corrected_lo", "corrected_hi")),
        Line("cosine, all prompts", turned, "cosine", ("cosine_lo", "cosine_hi")),
        Line("corrected, base in another precision", turned, "corrected_rounded", null=True),
        Line("corrected, base + random T", turned, "corrected_random", null=True),
        Line("two halves of the base", turned, "halves_base", null=True),
    ]
    return over_layers(lines, "cosine", zero=True)


def _row(row: dict[str, object]) -> list[str]:
    def told(*names: str) -> list[str]:
        return [number(float(row[name])) for name in names]  # type: ignore[arg-type]

    def ends(name: str) -> str:
        lo, hi = told(f"{name}_lo", f"{name}_hi")
        return "–" if lo == "–" else f"[{lo}, {hi}]"

    return [
        str(row["label"]),
        str(row["site"]),
        str(row["layer"]),
        *told("accuracy_base", "accuracy_tuned", "change"),
        ends("change"),
        *told("q", "change_rounded", "change_random", "lost_to_tuned", "corrected"),
        ends("corrected"),
        *told("corrected_rounded", "corrected_random"),
        str(row["verdict"]),
    ]
