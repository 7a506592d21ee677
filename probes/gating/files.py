"""Verdicts as files: JUnit XML for machines that run tests, Markdown for people."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from probes.gating.rule import RuleError
from probes.gating.verdicts import Gate, Ruled
from tv.errors import printable
from tv.runtime.atomic import replacing

_MARKS = {"pass": "✅ pass", "fail": "❌ fail", "cannot tell": "❔ cannot tell"}


def require_writable(paths: Sequence[Path | None]) -> None:
    """Raise RuleError where a file could not be written, before anything is judged."""
    for path in filter(None, paths):
        if path.is_dir() or not path.resolve().parent.is_dir():
            raise RuleError(f"{path}: no file can be written there; name one in a directory that exists")


def write_junit(found: Gate, path: Path) -> None:
    """Write the verdicts as JUnit XML, whole or not at all: a fail is a failure, cannot tell an error."""
    _write(path, junit(found))


def write_markdown(found: Gate, path: Path) -> None:
    """Write the verdicts as a Markdown table, whole or not at all."""
    _write(path, markdown(found))


def junit(found: Gate) -> str:
    """The verdicts as JUnit XML."""
    counts = {verdict: sum(ruled.verdict == verdict for ruled in found.ruled) for verdict in _MARKS}
    suite = ElementTree.Element(
        "testsuite",
        name="probes gate",
        tests=str(len(found.ruled)),
        failures=str(counts["fail"]),
        errors=str(counts["cannot tell"]),
        skipped="0",
    )
    for ruled in found.ruled:
        case = ElementTree.SubElement(suite, "testcase", classname=_text(f"gate.{ruled.tuned}"), name=_text(ruled.name))
        properties = ElementTree.SubElement(case, "properties")
        for key, value in vars(ruled).items():
            if key not in ("name", "because") and not (isinstance(value, float) and math.isnan(value)):
                ElementTree.SubElement(properties, "property", name=key, value=_text(str(value)))
        if ruled.verdict != "pass":
            kind = "failure" if ruled.verdict == "fail" else "error"
            ElementTree.SubElement(case, kind, type=ruled.verdict, message=_text(sentence(ruled)))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(found: Gate) -> str:
    """The verdicts as a Markdown table, the worst first."""
    order = ("fail", "cannot tell", "pass")
    counts = [f"{sum(ruled.verdict == verdict for ruled in found.ruled)} {verdict}" for verdict in order]
    lines = [
        f"## Gate: {_MARKS[found.verdict]}",
        "",
        f"{len(found.ruled)} rules on {', '.join(_cell(Path(run).name) for run in found.runs)}: {', '.join(counts)}.",
        "",
        "| verdict | rule | tuned | number | interval | may be | n | why |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for ruled in sorted(found.ruled, key=lambda ruled: order.index(ruled.verdict)):
        value = f"{number(ruled.value)} {ruled.unit}".strip()
        cells = [ruled.name, ruled.tuned, value, ends(ruled), may_be(ruled), count(ruled)]
        lines.append(f"| {' | '.join([_MARKS[ruled.verdict], *map(_cell, cells), _cell(ruled.because)])} |")
    lines += ["", "The intervals are those that the verdicts read, corrected over all rules (Holm)."]
    return "\n".join(lines) + "\n"


def sentence(ruled: Ruled) -> str:
    """A verdict in a line: "general is kept (medical): fail: 0.27 nats [0.1, 0.4]"."""
    interval = f" {ends(ruled)}" if not math.isnan(ruled.lo) else ""
    why = f"; {ruled.because}" if ruled.because else ""
    return f"{ruled.name} ({ruled.tuned}): {ruled.verdict}: {number(ruled.value)} {ruled.unit}{interval}{why}"


def number(value: float) -> str:
    """Three digits; a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.3g}"


def ends(ruled: Ruled) -> str:
    """The interval."""
    return "–" if math.isnan(ruled.lo) and math.isnan(ruled.hi) else f"[{number(ruled.lo)}, {number(ruled.hi)}]"


def may_be(ruled: Ruled) -> str:
    """What the rule lets the number be: "≤ 0.5", "≥ 0.2", "-0.1 … 0.1"."""
    low, high = f"{ruled.at_least:g}", f"{ruled.at_most:g}"
    if math.isnan(ruled.at_least):
        return "–" if math.isnan(ruled.at_most) else f"≤ {high}"
    return f"≥ {low}" if math.isnan(ruled.at_most) else f"{low} … {high}"


def count(ruled: Ruled) -> str:
    """Units, and the prompts that they hold."""
    return "–" if not ruled.n else str(ruled.n) if ruled.prompts in (0, ruled.n) else f"{ruled.n} of {ruled.prompts}"


def _write(path: Path, text: str) -> None:
    with replacing(path, RuleError) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _text(text: str) -> str:
    """Text that XML may hold: names and words come from strangers."""
    return printable(text.encode("utf-8", "replace").decode("utf-8"))


def _cell(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", html.escape(_text(text), quote=False))
