"""One type from end to end: a tiny pair, the whole job on its files, and independent hooks beside it."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

import probes
from probes.capture.pair import make_pair
from probes.store.manifest import STAGES
from tests.architectures.agreement import TOLERANCE, agreement, stored
from tests.architectures.files import word_tokenizer, written
from tests.architectures.tiny import tiny_pair
from tv.architecture.resolve import resolve
from tv.errors import InputError
from tv.runtime.compute import Compute

#: How far a backend's numbers may be from those of our own hooks.
_SAME = 1e-4
#: What says what a row is about.
_KEYS = ("prompt_id", "pos", "layer", "module", "component", "expert", "head")


@dataclass
class Record:
    """What became of one type."""

    type: str
    cls: str = ""
    rows: str = ""  # of weights: parameters that are in no row, of all
    result: str = ""  # works; works without …; refused: …; traceback: …; disagrees: …
    components: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    path: str = ""  # whether its shares add up
    backends: dict[str, str] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether the whole job ran and independent hooks agree."""
        return self.result.startswith("works")

    def as_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self)


def study(model_type: str, stages: Sequence[str] = STAGES, backends: Sequence[str] = ()) -> Record:
    """Build, run, compare. Nothing is raised: what goes wrong is what the record says."""
    record = Record(model_type)
    try:
        base, tuned = tiny_pair(model_type)
    except Exception as error:
        record.result = f"not built: {_line(error)}"
        return record
    record.cls = type(base).__name__
    begun: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        try:
            suite = written(base, tuned, directory)
            told = Compute(progress=lambda stage, done, total, label: begun.append(stage))
            run = probes.run(suite, out=directory / "run", stages=stages, compute=told)
            _compare(record, run, base, tuned, directory)
        except InputError as error:
            late = f" (late, after {begun[-1]})" if begun else ""
            record.result = f"refused{late}: {_line(error)}".replace(f"{directory}/", "")
        except Exception as error:
            record.result = f"traceback: {type(error).__name__}: {_line(error)} [{_where(error)}]"
        if record.works:
            record.backends = {name: _by_backend(name, suite, run, directory) for name in backends}
    gc.collect()
    return record


def _compare(record: Record, run: probes.Run, base: PreTrainedModel, tuned: PreTrainedModel, directory: Path) -> None:
    record.rows = _in_no_row(run["weights"], base)
    checks = run["checks"]
    gaps = checks[(checks.check == "completeness") & (checks.method == "path")]
    record.path = "adds up" if gaps.holds.all() else f"said not to add up ({gaps.value.max():.2g})"
    pair = make_pair(base, tuned, word_tokenizer())
    record.components = " ".join(pair.architecture.components)
    record.errors = agreement(run, base, tuned, pair.architecture, directory)
    failed = checks[~checks.holds.astype(bool) & (checks.method != "path")]
    wrong = [f"check {row.check} {row.method}: {row.value:.2g}" for row in failed.itertuples()]
    wrong += [f"{name} {error:.2g}" for name, error in record.errors.items() if not error <= TOLERANCE]
    notes = list(dict.fromkeys(note for flow in pair.flows for note in flow.notes))
    record.result = f"disagrees: {'; '.join(wrong)}" if wrong else "; ".join(["works", *notes])


def _in_no_row(weights: pd.DataFrame, model: PreTrainedModel) -> str:
    """How many parameters and saved buffers are in no row of `weights`."""
    architecture = resolve(model)
    rows = set(zip(weights.layer, weights.module, weights.expert, strict=True))
    covered: set[str] = set()
    for module in (*architecture.modules, *architecture.others):
        if (module.layer, module.name, module.expert) in rows:
            covered.add(module.parameter)
        if (module.layer, f"{module.name}_bias", module.expert) in rows:
            covered |= {f"{module.path}.bias", f"{module.parameter}_bias"}
    groups = tuple(f"{module.parameter}." for module in architecture.groups if module.parameter in covered)
    names = list(stored(model))
    missing = [name for name in names if name not in covered and not name.startswith(groups)]
    return f"{len(missing)} of {len(names)} in no row" if missing else f"all {len(names)}"


def _by_backend(backend: str, suite: Path, run: probes.Run, directory: Path) -> str:
    """Whether the backend gives the same tables of activations, or the line that it says."""
    settings = {"backend": backend, "attribute": None, "noise_floor": False}
    try:
        other = probes.run(suite, out=directory / backend, stages=["capture"], settings=settings)
    except InputError as error:
        return _line(error).replace(f"{directory}/", "")
    except Exception as error:
        return f"traceback: {type(error).__name__}: {_line(error)} [{_where(error)}]"
    for table in ("gates", "changes", "ledger"):
        if (table in run.tables) != (table in other.tables):
            return f"{table} differ"
        if table in run.tables and not _same(run[table], other[table]):
            return f"{table} differ"
    return "yes"


def _same(left: pd.DataFrame, right: pd.DataFrame) -> bool:
    if len(left) != len(right):
        return False
    keys = [name for name in _KEYS if name in left]  # a backend may call modules in another order
    left, right = (t.astype(dict.fromkeys(keys, str)).sort_values(keys, ignore_index=True) for t in (left, right))
    if "new_norm" in left:  # the root of a difference of squares, and as exact as these
        left, right = (t.assign(new_norm=t.new_norm**2) for t in (left, right))
    numbers = left.select_dtypes("number").columns
    near = [np.allclose(left[n], right[n], rtol=_SAME, atol=_SAME, equal_nan=True) for n in numbers]
    others = [left[n].astype(object).equals(right[n].astype(object)) for n in left.columns.difference(numbers)]
    return all((*near, *others))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


torch.set_num_threads(1)
