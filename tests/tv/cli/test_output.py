"""Tables as files: what is written is what there was."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tv.cli.output import check_output, write, write_table
from tv.errors import CheckpointError

READ = {
    "csv": lambda path: pd.read_csv(path, float_precision="round_trip"),
    "parquet": pd.read_parquet,
    "json": lambda path: pd.DataFrame(json.loads(path.read_text())),
}


@pytest.mark.parametrize("ending", READ)
def test_no_small_number_is_lost(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"module": ["gäte", "up"], "p": [1e-12, np.nan], "head": np.array([-1, 3], "int16")})
    frame.attrs["fingerprints"] = {"base": "abc"}
    path = tmp_path / f"table.{ending}"
    write(frame, path)
    expected = frame.assign(fingerprint_base="abc")
    pd.testing.assert_frame_equal(READ[ending](path), expected, check_dtype=False, rtol=0, atol=0)
    assert capsys.readouterr().out == f"{path}: 2 rows\n" and list(tmp_path.iterdir()) == [path]


def test_bytes_are_hexadecimal_and_whole_numbers_stay_whole(tmp_path: Path) -> None:
    found = pa.table({"bits": [b"\x00\xff", None], "n": [2**60 + 1, None]})
    fixed = found.append_column("fixed", pa.array([b"ab", None], pa.binary(2)))
    for ending in READ:
        write_table(fixed, tmp_path / f"table.{ending}")
    assert (tmp_path / "table.csv").read_text() == f"bits,n,fixed\n00ff,{2**60 + 1},6162\n,,\n"
    assert json.loads((tmp_path / "table.json").read_text()) == [
        {"bits": "00ff", "n": 2**60 + 1, "fixed": "6162"},
        {"bits": None, "n": None, "fixed": None},
    ]
    assert pq.read_table(tmp_path / "table.parquet").equals(fixed)


def test_what_cannot_be_written_is_told_beforehand(tmp_path: Path) -> None:
    check_output(None)
    check_output(tmp_path / "table.csv")
    for name, told in (
        ("table.xls", "unknown ending '.xls'; use .parquet, .csv, .json"),
        ("no/table.csv", "directory"),
    ):
        with pytest.raises(CheckpointError, match=told):
            check_output(tmp_path / name)
