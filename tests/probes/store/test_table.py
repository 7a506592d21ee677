"""A handle on a table says what is in it without reading it, and reads what it is asked for."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from probes.errors import RunError
from probes.store.run import Run, load
from probes.store.schemas import SCHEMAS
from probes.store.table import size_text
from probes.store.writer import RunWriter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Behaviour of 1200 prompts."""
    directory = tmp_path_factory.mktemp("handle") / "run"
    rows = {"prompt_id": [f"p{i:04}" for i in range(1200)], "model": "base", "metric": "kl", "value": range(1200)}
    with RunWriter(directory) as writer:
        writer.write("behaviour", pd.DataFrame(rows), shard="0")
        writer.finish({"suite": {"name": "tiny"}})
    return load(directory)


def test_it_knows_its_table_without_reading_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "arrow", lambda *_: pytest.fail("the table was read"))
    table = run.table("behaviour")
    files = list((run.path / "tables" / "behaviour").rglob("*.parquet"))
    assert len(table) == 1200 and table.size == run.size("behaviour") == sum(path.stat().st_size for path in files)
    assert table.columns == {"prompt_id": "string", "model": "string", "metric": "string", "value": "float"}
    size = size_text(table.size)
    assert repr(table).splitlines()[0] == f"behaviour: 1,200 rows, 4 columns, {size}" and "value      float" in repr(
        table
    )
    assert "<td>value</td><td>float</td>" in table._repr_html_() and "1,200 rows" in table._repr_html_()
    assert f"<td>behaviour</td><td>1,200</td><td>4</td><td>{size}</td>" in run._repr_html_()
    assert f"1,200 rows    4 columns{size:>10}" in repr(run)


def test_it_reads_what_it_is_asked_for(run: Run) -> None:
    table = run.table("behaviour")
    wanted = run["behaviour"].query("value > 1197")[["prompt_id", "value"]].reset_index(drop=True)
    ask = {"columns": ["prompt_id", "value"], "where": [("value", ">", 1197)]}
    assert len(wanted) == 2
    pd.testing.assert_frame_equal(table.df(**ask), wanted)
    found = table.arrow(**ask)
    assert isinstance(found, pa.Table) and found.to_pylist() == wanted.to_dict("records")
    asked = table.sql("SELECT prompt_id, value FROM behaviour WHERE value > 1197 ORDER BY value")
    pd.testing.assert_frame_equal(asked, wanted)


def test_its_sql_reads_it_alone(run: Run) -> None:
    with pytest.raises(RunError, match=r"^behaviour: .*reads behaviour alone; ask run\.sql") as caught:
        run.table("behaviour").sql("SELECT count(*) FROM gates")
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="query: "):
        run.table("behaviour").sql("SELECT nothing FROM behaviour")


def test_polars_where_it_is_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Polars:
        @staticmethod
        def from_arrow(table: pa.Table) -> list[dict[str, object]]:
            return table.to_pylist()

    monkeypatch.setitem(sys.modules, "polars", Polars)
    assert run.table("behaviour").polars(["value"], [("value", "<", 1)]) == [{"value": 0.0}]
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(RunError, match="polars is not installed: pip install polars"):
        run.polars("behaviour")


def test_a_weight_table_with_a_broken_footer_is_said(run: Run, tmp_path: Path) -> None:
    """Its columns are those of its first file, so that nothing slow is imported to name them."""
    run = load(shutil.copytree(run.path, tmp_path / "run"))
    run.add("weights", pd.DataFrame({name: [] for name in SCHEMAS["weights"].names}))
    (file,) = (run.path / "tables" / "weights").glob("*.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:-300] + bytes(292) + content[-8:])  # the footer's length and the magic are as they were
    with pytest.raises(RunError, match=r"table weights cannot be read: .*; make the run again"):
        load(run.path).table("weights").schema  # noqa: B018


def test_a_table_that_is_not_there_has_no_handle(run: Run) -> None:
    for ask in (run.table, run.size):
        with pytest.raises(RunError, match="no table 'gates'; the only one is behaviour"):
            ask("gates")


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (4_200_000, "4.2 MB"), (8e12, "8000.0 GB")])
def test_bytes_as_people_say_them(size: int, text: str) -> None:
    assert size_text(size) == text
