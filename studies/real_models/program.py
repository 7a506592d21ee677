"""The same run of the program in five ways: what each took, what it had said beforehand, and whether tables agree."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import probes
import tv
from probes.errors import RunError
from probes.forecast import forecast
from probes.store.run import Run
from studies.real_models.models import SOURCES
from studies.real_models.reading import prompt_files, write
from studies.real_models.stage import Stage
from studies.real_models.study import Study, trainings
from studies.real_models.texts import TOKENS

#: Of each of two domains. More of them would only take longer.
PROMPTS = 3
#: What is done of a run.
STAGES = ["capture"]
#: Forwards of a model over the prompts: the capture of a pair, what both write, and the trial before.
FORWARDS = 5.5
#: How a process begins: with nothing that another has loaded.
BEGIN = multiprocessing.get_context("spawn")
#: CPU seconds of a process until it computes: imports, and the check of both models where it has them.
START = 10


@dataclass(frozen=True)
class Way:
    """One way to do the run.

    Args:
        settings: of the suite.
        compute: of `tv.Compute`.
        starts: processes that load both models.
        killed: whether the first process ends itself by SIGKILL in the middle of the capture.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    compute: Mapping[str, Any] = field(default_factory=dict)
    starts: int = 1
    killed: bool = False


#: The first is what the others are compared with.
WAYS = {
    "plain": Way(),
    "killed and resumed": Way(starts=2, killed=True),
    "layer by layer": Way(compute={"stream": True}),
    "two workers": Way(compute={"workers": 2}, starts=3),
    "nnsight": Way(settings={"backend": "nnsight"}),
}


def stages(study: Study) -> list[Stage]:
    """A stage for each way, of the first model; nnsight where it is installed. A short study has the first two."""
    ways = [way for way in WAYS if way != "nnsight" or importlib.util.find_spec("nnsight")]
    ways = ways[:2] if study.size.short else ways
    return [_stage(study, way) for way in ways]


def _stage(study: Study, way: str) -> Stage:
    one = trainings(study.size)[0]
    name = _name(way, one.model)
    source, n = SOURCES[one.model], min(PROMPTS, study.size.prompts)
    tokens = n * sum(TOKENS[name] for name in study.size.domains[one.model][:2])
    cpu = (1 + WAYS[way].starts) * START + FORWARDS * tokens * source.forward
    needs = [f"base-{one.model}", f"tune-{one.name}", *([] if way == "plain" else [_name("plain", one.model)])]
    work = partial(_write_way, study, way, study.results(name))
    return Stage(name, work, cpu, source.memory(2, 7), 1, study.results(name), tuple(needs))


def _name(way: str, model: str) -> str:
    return f"program-{model}-{way.replace(' ', '-')}"


def _write_way(study: Study, way: str, out: Path) -> None:
    one, place = trainings(study.size)[0], study.work / "program" / way.replace(" ", "-")
    suite = {
        "name": "program",
        "base": str(study.base(one.model).resolve()),
        "tuned": {f"{one.domain}-{one.method}": str(study.tuned(one).resolve())},
        "prompts": [
            prompts | {"limit": min(PROMPTS, study.size.prompts)}
            for prompts in prompt_files(study, study.size.domains[one.model][:2])
        ],
        "measure": ["gates", "contributions", "behaviour"],
        "batch_size": 2,
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f"{place.name}*"):  # of a stage that was killed itself
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    wall, said = time.monotonic(), place.with_name(f"{place.name}.jsonl")
    for killed in [True, False] if WAYS[way].killed else [False]:
        child = BEGIN.Process(target=_run, args=(suite, way, place, said, killed))
        child.start()
        child.join()
        if child.exitcode != (-signal.SIGKILL if killed else 0):
            raise RunError(f"{place}: the run ended with status {child.exitcode}; the lines above say why")
    took = pd.DataFrame([json.loads(line) for line in said.read_text(encoding="utf-8").splitlines()])
    run = probes.load(place)
    sums = ["cpu", "cpu_run", "wall_run"]  # over the processes
    row = {"way": way, "wall": time.monotonic() - wall} | dict(took[sums].sum()) | dict(took.drop(columns=sums).max())
    row |= {"disk": sum(run.size(table) for table in run.tables) / 2**20}
    tables = {"program": pd.DataFrame([row])}
    if way != "plain":
        plain = probes.load(place.with_name("plain"))
        tables["program_tables"] = differences(plain, run).assign(way=way)
    write(out, tables, model=one.model)


def differences(one: Run, other: Run) -> pd.DataFrame:
    """A row a table: how far numbers lie apart, and how many other entries differ; all NaN where the other has none.

    Rows are compared in their order.
    """
    rows: list[dict[str, object]] = []
    for name in one.tables:
        if name not in other.tables:
            rows.append({"table": name, "rows": 0})
            continue
        left, right = one[name], other[name]
        if len(left) != len(right):
            raise RunError(f"{other.path}: table {name} has {len(right)} rows and not {len(left)}")
        largest, unequal = 0.0, 0
        for column in left:
            a, b = left[column], right[column]
            if pd.api.types.is_float_dtype(a):
                first, second = (side.to_numpy(np.float64, na_value=np.nan) for side in (a, b))
                both = ~(np.isnan(first) | np.isnan(second))
                gap = np.abs(first[both] - second[both])
                largest = max(largest, float(np.where(first[both] == second[both], 0.0, gap).max(initial=0.0)))
                unequal += int((np.isnan(first) != np.isnan(second)).sum())
            else:
                same = (a.astype(object) == b.astype(object)) | (a.isna() & b.isna())
                unequal += int((~same).sum())
        rows.append({"table": name, "rows": len(left), "largest_difference": largest, "others_unequal": unequal})
    return pd.DataFrame(rows)


def _run(suite: Mapping[str, Any], way: str, out: Path, said: Path, killed: bool) -> None:
    """What a process does: the run, or the first half of its capture; and a line of what it took and was to take."""
    os.setsid()
    chosen = WAYS[way]

    def progress(stage: str, done: int, total: int, label: str) -> None:
        if killed and stage.startswith("capture") and 2 * done >= total:
            record()
            os.kill(os.getpid(), signal.SIGKILL)

    compute = tv.Compute(progress=progress, **chosen.compute)
    job = probes.prepare(suite, out=out, stages=STAGES, settings=chosen.settings, compute=compute)
    stages = forecast(job)
    cpu, wall = _cpu(), time.monotonic()
    expected = {
        "cpu_estimate": sum(stage.cpu for stage in stages) if stages else None,
        "wall_estimate": sum(stage.wall for stage in stages) if stages else None,
        "memory_estimate": max(stage.memory for stage in stages) / 2**20 if stages else None,
        "disk_estimate": sum(job.sizes.values()) / 2**20,
    }

    def record() -> None:
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        took = {"cpu": _cpu(), "cpu_run": _cpu() - cpu, "wall_run": time.monotonic() - wall, "memory": peak / 1024}
        with said.open("a", encoding="utf-8") as file:
            file.write(json.dumps(took | expected) + "\n")

    job.run()
    record()


def _cpu() -> float:
    """CPU seconds of the processes of this session, and of those that they waited for.

    A worker is the child of a server of workers, which nobody waits for.
    """
    taken, session = 0.0, os.getsid(0)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # one that has just ended
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[3]) == session:
                taken += sum(map(int, fields[11:15]))
    return taken / os.sysconf("SC_CLK_TCK")
