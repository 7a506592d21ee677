"""The `tv` command on good and bad input."""

from pathlib import Path

import pandas as pd
import pytest

import tv
from tests.command import call
from tests.pairs import build_pair
from tv.cli import main


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_tables_are_written(ending: str, tmp_path: Path, monkeypatch, capsys) -> None:
    pair = build_pair(tmp_path)
    readers = {"parquet": pd.read_parquet, "csv": pd.read_csv, "json": pd.read_json}
    for command, expected in (("ssa", tv.ssa(*pair)), ("geometry", tv.geometry(*pair, heads=False))):
        out = tmp_path / f"{command}.{ending}"
        code, stdout, _ = call(monkeypatch, capsys, main, command, *pair, "-o", out)
        assert code == 0 and {"ssa": "its null", "geometry": "tuning vector by module"}[command] in stdout
        assert len(readers[ending](out)) == len(expected)
    assert not list(tmp_path.glob("*.tmp"))


def test_info_and_extract(tmp_path: Path, monkeypatch, capsys) -> None:
    pair = build_pair(tmp_path)
    code, stdout, _ = call(monkeypatch, capsys, main, "info", *pair)
    assert code == 0 and "LlamaForCausalLM" in stdout and "fits" in stdout
    assert call(monkeypatch, capsys, main, "extract", *pair, "-o", tmp_path / "t.safetensors")[0] == 0
    assert tv.TuningVector.load(tmp_path / "t.safetensors").norm() == pytest.approx(tv.extract(*pair).norm())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ssa", "{base}", "./nowhere"], "no such directory"),
        (["ssa", "{base}", "{tuned}", "-o", "out.xlsx"], ".xlsx"),
        (["ssa", "{base}", "{tuned}", "-o", "no/such/out.csv"], "directory"),
        (["ssa", "{base}", "{tuned}", "--epsilon", "1.5"], "1.5"),
        (["extract", "{base}", "{tuned}", "-o", "t.bin"], ".safetensors"),
        (["ssa", "{base}"], "TUNED"),
        (["ssa", "{base}", "{tuned}", "--epsilon", "small"], "--epsilon"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], expected: str, tmp_path, monkeypatch, capsys) -> None:
    base, tuned = build_pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, stderr = call(monkeypatch, capsys, main, *(a.format(base=base, tuned=tuned) for a in arguments))
    assert code == 2 and expected in stderr and len(stderr.strip().splitlines()) == 1, stderr
    assert sorted(tmp_path.rglob("*")) == before
