"""The directory of a watched training: tables that grow by whole Parquet files, readable at any time.

A measurement is a file a table, the one of `steps` last: what it names is complete. Every so often all files of a table
become one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow

from probes.errors import RunError
from tv.runtime.atomic import replacing

TABLES = ("steps", "weights", "cosines", "behaviour", "flips", "nulls")
MANIFEST = "watch.json"
_FOLD = 64  # measurements in files of their own


class Watched:
    """A watched training on disk: `watched["steps"]` is a DataFrame.

    Args:
        path: The directory that a `probes.TrainingProbe` writes, or wrote.

    Raises:
        RunError: It is none.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _manifest(self.path)

    def __repr__(self) -> str:
        return f"{self.path}: a watched training, {'ended' if self.ended else 'not ended'}; {', '.join(self.tables)}"

    @property
    def ended(self) -> bool:
        """Whether training came to its end, as far as the files say."""
        return bool(_manifest(self.path).get("ended"))

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that have rows."""
        return tuple(name for name in TABLES if any(_files(self.path, name)))

    def __getitem__(self, table: str) -> pd.DataFrame:
        if table not in TABLES:
            raise KeyError(f"no table {table!r}; there are {', '.join(TABLES)}")
        known = read_table(self.path, "steps")
        frame = known if table == "steps" else read_table(self.path, table)
        return frame[frame.step.isin(known.step)].reset_index(drop=True) if len(frame) else frame


def load_watch(path: str | Path) -> Watched:
    """Open a watched training, while it runs or afterwards.

    Args:
        path: The directory that a `probes.TrainingProbe` writes, or wrote.

    Returns:
        Its tables, read when they are asked for: `steps`, `weights`, `cosines`, `behaviour`, `flips`, `nulls`.

    Raises:
        RunError: It is not such a directory.

    Examples:
        >>> from tv.checkpoints.live import load_model
        >>> model = load_model("data/models/base")
        >>> probes.TrainingProbe("watched").step(model, 0)
        True
        >>> probes.load_watch("watched")["steps"].norm.tolist()
        [0.0]
    """
    return Watched(path)


def is_watched(path: str | Path) -> bool:
    """Whether a directory is that of a watched training."""
    with suppress(OSError):
        return (Path(path) / MANIFEST).is_file()
    return False


def write_manifest(path: Path, said: Mapping[str, Any]) -> None:
    """Write what a reader needs to know beside the tables."""
    with replacing(path / MANIFEST, RunError) as temporary:
        temporary.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def append(path: Path, step: int, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write a measurement; `steps` comes last."""
    for name in sorted(tables, key=lambda name: name == "steps"):
        if tables[name]:
            folder = path / "tables" / name
            folder.mkdir(parents=True, exist_ok=True)
            frame = pd.DataFrame([{"step": step, **row} for row in tables[name]])
            _write(frame, folder / f"step-{step:09d}.parquet")
    if len(list(_files(path, "steps"))) > _FOLD:
        _fold(path)


def forget(path: Path, after: int) -> None:
    """Remove measurements of steps after `after`: training was resumed there, and takes them again."""
    for name in TABLES:
        frame = read_table(path, name)
        if len(frame) and frame.step.max() > after:
            _write(frame[frame.step <= after], path / "tables" / name / f"until-{after:09d}.parquet")
            for file in list(_files(path, name)):
                if file.name != f"until-{after:09d}.parquet":
                    file.unlink()


def read_table(path: Path, name: str) -> pd.DataFrame:
    """All rows of a table, in the order of steps; a step that two files hold is read from the first."""
    frames: list[pd.DataFrame] = []
    last = -1
    for file in _files(path, name):
        try:
            frame = pd.read_parquet(file)
        except FileNotFoundError:  # folded meanwhile
            return read_table(path, name)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise RunError(f"{file}: cannot be read: {error}; remove it, and what it held is lost") from error
        frame = frame[frame.step > last]
        last = max(last, int(frame.step.max())) if len(frame) else last
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"step": pd.Series(dtype="int64")})


def _fold(path: Path) -> None:
    """All files of each table become one. A kill in between leaves steps in two files, of which one is read."""
    for name in TABLES:
        files = list(_files(path, name))
        if len(files) > 1:
            frame = read_table(path, name)
            whole = path / "tables" / name / f"until-{int(frame.step.max()):09d}.parquet"
            _write(frame, whole)
            for file in files:
                if file != whole:
                    file.unlink()


def _files(path: Path, name: str) -> Iterator[Path]:
    """The files of a table: those of many steps first, the longest first of all."""
    folder = path / "tables" / name
    with suppress(FileNotFoundError):
        names = [one for one in os.listdir(folder) if one.endswith(".parquet")]
        whole = sorted((one for one in names if one.startswith("until-")), reverse=True)
        yield from (folder / one for one in (*whole, *sorted(one for one in names if one.startswith("step-"))))


def _write(frame: pd.DataFrame, path: Path) -> None:
    with replacing(path, RunError) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")


def _manifest(path: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: no watched training is there ({MANIFEST}: {type(error).__name__}); pass the `out` of a "
            "probes.TrainingProbe"
        ) from error
    return said
