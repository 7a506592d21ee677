"""Every type that transformers knows, through `study`: the table of docs/architectures.md.

`python -m tests.architectures.survey [type …] [--minutes N] [--backends] [--write]` studies the types that have no
record of the code as it is, in two processes, and prints the table. Records are lines of reports/architectures.jsonl:
the same command goes on where it was stopped. `--backends` runs the other backends too; `--write` writes the page out
of the newest records.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from tests.architectures.study import Record, study
from tests.architectures.tiny import DECODERS, TYPES, WRAPPERS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architectures.md"
RECORDS = ROOT / "reports" / "architectures.jsonl"
BACKENDS = ("transformer_lens", "nnsight")
#: Every type, those that people fine-tune first.
ALL = tuple(dict.fromkeys((*DECODERS, *WRAPPERS, *TYPES)))

_SECONDS = 180  # at most, for one type
_BEGIN, _END = "<!-- types: {} -->\n", "<!-- end -->\n"
_HEAD = "| type | class | weights | probes | components | hooks agree | path | TransformerLens, nnsight |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", default=ALL)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--backends", action="store_const", const=BACKENDS, default=())
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    if unknown := set(asked.types) - set(ALL):
        parser.error(f"no such types: {', '.join(sorted(unknown))}")
    survey(asked.types, asked.backends, asked.minutes)
    print(table(asked.types))
    if asked.write:
        PAGE.write_text(page(), encoding="utf-8")


def survey(types: Iterable[str], backends: Sequence[str], minutes: float) -> None:
    """Study what has no record of this code yet, for so long."""
    code, end = digest(), time.monotonic() + 60 * minutes
    done = {name for name, known in records().items() if known["code"] == code and _asked(known, backends)}
    left = [name for name in types if name not in done]
    if not left:
        return
    RECORDS.parent.mkdir(exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, initializer=_quiet, max_tasks_per_child=30) as pool:
        running: dict[Future[Record], str] = {}
        while (left and time.monotonic() < end) or running:
            while left and len(running) < 3 and time.monotonic() < end:
                name = left.pop(0)
                running[pool.submit(_bounded, name, backends)] = name
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                record = future.result()
                running.pop(future)
                with RECORDS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"code": code, **record.as_dict()}) + "\n")
                print(f"{record.type}: {record.result}", flush=True)


def _asked(known: dict[str, Any], backends: Sequence[str]) -> bool:
    """Whether a record says of all these backends what there is to say."""
    return not Record(**_fields(known)).works or set(backends) <= known["backends"].keys()


def _fields(known: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in known.items() if name != "code"}


def records() -> dict[str, dict[str, Any]]:
    """The newest record of every type."""
    if not RECORDS.exists():
        return {}
    return {line["type"]: line for line in map(json.loads, RECORDS.read_text(encoding="utf-8").splitlines())}


def digest() -> str:
    """Of the sources whose change makes a record old."""
    files = sorted(path for room in ("tv", "probes", "tests/architectures") for path in (ROOT / room).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def types_digest() -> str:
    """Of the installed library's types and the names that the rules know: what the page must be of."""
    names = (ROOT / "tv" / "architecture" / "names.py").read_text(encoding="utf-8")
    return hashlib.sha256("\n".join((*sorted(ALL), names)).encode()).hexdigest()[:12]


def page() -> str:
    """The page as it should be: its prose as it is, and the table of the newest records."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split("<!-- types: ", 1)
    return head + _BEGIN.format(types_digest()) + "\n" + table(ALL) + "\n" + _END + rest.split(_END, 1)[1]


def table(types: Iterable[str]) -> str:
    """The sums, and a line a type: of its newest record, or without one as the page has it."""
    known, before = records(), committed()
    none = {name: before.get(name, cells(Record(name, result="not studied"))) for name in types}
    made = none | {name: cells(Record(**_fields(known[name]))) for name in none if name in known}
    lines = [f"| {' | '.join(line)} |" for line in made.values()]
    sums = [_sum("decoder language models", made, DECODERS), _sum("wrappers", made, WRAPPERS)]
    return "\n".join((*sums, "", _HEAD, "|" + " --- |" * (_HEAD.count("|") - 1), *lines))


def committed() -> dict[str, tuple[str, ...]]:
    """The page's lines, cell by cell, by type."""
    lines = PAGE.read_text(encoding="utf-8").split("<!-- types: ")[1].splitlines()
    rows = [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines if line.startswith("| ")]
    return {row[0]: row for row in rows if row[0] in ALL}


def cells(record: Record) -> tuple[str, ...]:
    """A line of the table, cell by cell."""
    worst = max(record.errors.items(), key=lambda item: item[1], default=None)
    agree = "" if worst is None else f"{len(record.errors)} kinds, at most {worst[1]:.0e} ({worst[0]})"
    backends = "; ".join(dict.fromkeys(record.backends.values()))
    found = (record.type, record.cls, record.rows, record.result, record.components, agree, record.path, backends)
    return tuple(cell.replace("|", "/") for cell in found)


def _sum(what: str, made: Mapping[str, Sequence[str]], types: Sequence[str]) -> str:
    works = sum(made[name][3].startswith("works") for name in types if name in made)
    return f"The whole job runs on {works} of {len(types)} {what}.  "


def _bounded(model_type: str, backends: Sequence[str]) -> Record:
    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"more than {_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        return study(model_type, backends=backends)
    except TimeoutError as error:
        return Record(model_type, result=f"traceback: {error}")
    finally:
        signal.alarm(0)


def _quiet() -> None:
    import logging
    import warnings

    import transformers

    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
