"""The tables of the study: what its stages wrote, joined by name."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd

from studies.real_models.running import Done, Journal
from studies.real_models.study import Study, stages
from tv.errors import InputError

#: Where the tables of a whole study lie.
COMMITTED = Path(__file__).with_name("tables")


def collect(study: Study, out: Path) -> list[str]:
    """Join the results of all stages that are done into `out`, a CSV file a table; the stages that are missing.

    Beside them stand the losses of every fine-tune, the digests of all weights, and what each stage took against its
    estimate.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[pd.DataFrame]] = {"held_out": [], "training": []}
    missing = []
    for stage in stages(study):
        if not stage.out.exists():
            missing.append(stage.name)
            continue
        if stage.name.startswith(("base-", "tune-")):
            found.setdefault("digests", []).append(_digests(stage.out))
        if stage.name.startswith("tune-"):
            for name, file in (("held_out", "held_out.csv"), ("training", "steps.csv")):
                found[name].append(pd.read_csv(stage.out / file).assign(tune=stage.out.name))
        elif stage.out == study.results(stage.name):
            for path in sorted(stage.out.glob("*.csv")):
                found.setdefault(path.stem, []).append(pd.read_csv(path))
    rows = [asdict(done) for done in Journal(study.work).done().values()]
    found["stages"] = [pd.DataFrame(rows, columns=[field.name for field in fields(Done)])]
    for name, parts in found.items():
        if parts:
            table = pd.concat(parts, ignore_index=True)
            if "cluster" in table:  # what a data set calls it is the data set's; which rows share one is enough
                table["cluster"] = [hashlib.sha256(str(one).encode()).hexdigest()[:8] for one in table.cluster]
            table.to_csv(out / f"{name}.csv", index=False, float_format="%.4g")
    return missing


def _digests(model: Path) -> pd.DataFrame:
    """The SHA-256 of each file of a model's weights; those of checkpoints on the way lie in folders of their own."""
    rows = []
    for path in sorted(model.rglob("*.safetensors")):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        rows.append({"file": str(path.relative_to(model.parent)), "bytes": path.stat().st_size, "sha256": digest})
    return pd.DataFrame(rows)


def load(folder: Path = COMMITTED) -> dict[str, pd.DataFrame]:
    """Every table by its name, joined over the folders in which a study's parts were collected.

    Raises:
        InputError: where two of them are of the same stages, which would count twice.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    for path in sorted(folder.rglob("*.csv")):
        parts.setdefault(path.stem, []).append(pd.read_csv(path, keep_default_na=True))
    tables = {name: pd.concat(found, ignore_index=True) for name, found in parts.items()}
    twice = tables["stages"].stage.duplicated() if "stages" in tables else pd.Series(dtype=bool)
    if twice.any():
        stage = tables["stages"].stage[twice].iloc[0]
        raise InputError(f"{folder}: {stage} stands in two of its folders; remove one of them")
    return tables
