"""`probes gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tv.cli.commands import CANNOT_TELL, DONE, FAILED
from tv.cli.terminal import interval, print_table, say, wrote
from tv.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from probes.gating.verdicts import Gate

STATUS = {"pass": DONE, "fail": FAILED, "cannot tell": CANNOT_TELL}


def gate(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Directories or URLs of runs, whose tuned models the rules judge; with --plan, also a suite before "
            "its run.",
            metavar="RUN",
        ),
    ],
    rules: Annotated[Path, typer.Option(help="The file of rules (YAML); see docs/gate.md.")],
    plan: Annotated[bool, typer.Option("--plan", help="Do not judge; show what each rule could detect.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write the verdicts as JUnit XML to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the verdicts as Markdown to this file.")] = None,
) -> int:
    """Decide whether a tuned model may ship: check the numbers of a run against rules.

    Each rule passes, fails, or cannot tell. Exit status: 0 if all pass, 3 if any fails, 4 if none fails but some
    cannot tell.

    Example: probes gate reports/demo --rules data/gates/demo.yaml
    """
    from probes.gating.files import require_writable, write_junit, write_markdown
    from probes.gating.planning import gate_plan
    from probes.gating.verdicts import gate as judge

    require_writable([junit, markdown])
    if plan:
        _print_plan(gate_plan(source[0] if len(source) == 1 else source, rules))
        return DONE
    suites = [one for one in source if Path(one).suffix in (".yaml", ".yml")]
    if suites:
        raise InputError(f"{suites[0]}: this is a suite, which has no numbers yet; add --plan, or pass its run")
    found = judge(source, rules)
    _print(found)
    if junit is not None:
        write_junit(found, junit)
        wrote(junit, f"{len(found.ruled)} verdicts as JUnit XML")
    if markdown is not None:
        write_markdown(found, markdown)
        wrote(markdown, f"{len(found.ruled)} verdicts as Markdown")
    return STATUS[found.verdict]


def _print(found: Gate) -> None:
    from probes.gating.files import may_be

    rows = [
        [
            one.verdict,
            one.name,
            one.tuned,
            one.value,
            interval(one.lo, one.hi),
            may_be(one),
            one.unit,
            one.n or None,
            one.because,
        ]
        for one in found.ruled
    ]
    print_table("", ["verdict", "rule", "tuned", "number", "interval", "may be", "unit", "n", "why"], rows)
    counts = {verdict: sum(one.verdict == verdict for one in found.ruled) for verdict in STATUS}
    say(f"gate: {found.verdict} ({', '.join(f'{n} {verdict}' for verdict, n in counts.items())})")


def _print_plan(ahead: pd.DataFrame) -> None:
    words = {True: "yes", False: "no", None: "–"}
    rows = [
        [
            row["name"],
            row["tuned"],
            row["n"] or None,
            row["prompts"] or None,
            row["matters"],
            row["detectable"],
            row["unit"],
            words[row["reachable"]],
            row["note"],
        ]
        for row in ahead.astype({"reachable": object}).to_dict("records")
    ]
    columns = ["rule", "tuned", "n", "prompts", "bound", "detectable", "unit", "reachable", "note"]
    print_table("what each rule can detect in 80 % of runs, corrected for the number of rules", columns, rows)
