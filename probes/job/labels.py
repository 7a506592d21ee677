"""The values of a label by prompt: of the prompts, of what a run measured, or of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from probes.directions.labels import own_label
from probes.errors import RunError
from probes.store.run import Run
from tv.errors import choices, first_line, meant

DOMAIN, CORRECT = "domain", "correct"
#: The columns of a file that may hold prompts' ids.
_IDS = ("prompt_id", "id")
_READERS = {
    ".csv": lambda path: pd.read_csv(path, dtype=dict.fromkeys(_IDS, str)),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", dtype=dict.fromkeys(_IDS, str)),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=dict.fromkeys(_IDS, str)),
    ".parquet": pd.read_parquet,
}


def values_of(run: Run, label: str, of: str, tuned: str) -> dict[str, Mapping[str, object]]:
    """By side, "base" and "tuned", the label's value of each prompt.

    Args:
        run: A finished run.
        label: "domain", "correct", or FILE:COLUMN.
        of: "own", "base" or "tuned": whose answers `correct` is about.
        tuned: The tuned model's name.

    Raises:
        RunError: There is no such label.
    """
    if label == CORRECT:
        own = {"base": _correct(run, "base"), "tuned": _correct(run, tuned)}
        return own if of == "own" else {side: own[of] for side in own}
    found = _domains(run) if label == DOMAIN else _of_file(run, label)
    return {"base": found, "tuned": found}


def name_of(label: str, of: str) -> str:
    """The label's name in tables: of a file its column, of answers also whose they are."""
    if label == CORRECT and of != "own":
        return f"{CORRECT} of {of}"
    return label if label in (DOMAIN, CORRECT) else label.rpartition(":")[2]


def _domains(run: Run) -> Mapping[str, object]:
    rows = run.df("prompts", columns=["prompt_id", "domain"])
    return own_label(DOMAIN, rows.domain.astype(str).tolist(), rows.prompt_id.astype(str).tolist())


def _correct(run: Run, model: str) -> Mapping[str, object]:
    where = [("model", "==", model), ("metric", "==", "logit_diff")]
    rows = run.df("behaviour", where=where) if "behaviour" in run.tables else pd.DataFrame()
    if rows.empty:
        raise RunError(
            f"{run.path}: label {CORRECT} needs the logit difference of {model} in the table behaviour; give prompts a "
            "target and a foil, and measure: [behaviour]"
        )
    known = rows[rows.value.notna()]
    said = ["right" if value > 0 else "wrong" for value in known.value]
    return own_label(CORRECT, said, known.prompt_id.astype(str).tolist())


def _of_file(run: Run, label: str) -> Mapping[str, object]:
    name, colon, column = label.rpartition(":")
    path = Path(name)
    if not colon or path.suffix.casefold() not in _READERS:
        raise RunError(
            f"no label {label!r}{meant(label, (DOMAIN, CORRECT))}; use {DOMAIN}, {CORRECT}, or FILE:COLUMN of a "
            f"{', '.join(_READERS)} file with a column prompt_id or id"
        )
    if not path.is_file():
        raise RunError(f"label {label!r}: no such file {path}")
    try:
        rows = _READERS[path.suffix.casefold()](path)
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read: {first_line(error)}") from error
    ids = next((key for key in _IDS if key in rows), None)
    if ids is None:
        raise RunError(f"{path}: no column prompt_id or id to match labels with prompts")
    if column not in rows:
        raise RunError(f"{path}: no column {column!r}{choices(column, rows.columns)}")
    named = rows[rows[ids].notna()]
    found = own_label(column, named[column].tolist(), named[ids].astype(str).tolist())
    there = set(run.df("prompts", columns=["prompt_id"]).prompt_id.astype(str))
    if not there & found.keys():
        raise RunError(f"{path}: no id in it is a prompt of {run.path}; its first id is {next(iter(found), '')!r}")
    return found
