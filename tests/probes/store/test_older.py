"""A run of schema version 3, kept as the program of that time wrote it, is read for ever."""

import json
import logging
import shutil
from pathlib import Path

import pytest

import probes
from probes.store.forms.declare import TABLES, extend, table
from probes.store.schemas import SCHEMA_VERSION, SCHEMAS, form_of
from tv.columns import Column, keys
from tv.measures.declared import MEASURES, of_weights
from tv.measures.part import Part

KEPT = Path(__file__).parent / "data" / "run_v3"
LATER = SCHEMA_VERSION + 1


def _nothing(part: Part) -> dict[str, float]:
    return {}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(KEPT, tmp_path / "run"))


def test_every_table_is_read() -> None:
    run = probes.load(KEPT)
    assert run.manifest["schema_version"] == 3 and set(run.tables) <= set(SCHEMAS) and len(run.tables) >= 20
    for name in run.tables:
        frame = run[name]
        assert len(frame) == len(run.table(name)) == run.manifest["tables"][name]["rows"] > 0
        assert list(frame.columns) == SCHEMAS[name].names
        assert run.sql(f"SELECT count(*) AS n FROM {name}").n.tolist() == [len(frame)]
    weights = run["weights"].query("head == -1 and expert == -1 and module == 'q'")
    assert weights.layer.tolist() == list(range(6)) and weights.relative_norm.between(0.001, 1).all()
    assert run["gates"].flip_rate.between(0, 1).all() and set(run["effects"].method) >= {"path", "graft", "revert"}


def test_link_and_report_are_drawn_again(copy: Path) -> None:
    run = probes.load(copy)
    before = run["link"]
    assert probes.link(run).relative_norm.tolist() == pytest.approx(before.relative_norm.tolist(), nan_ok=True)
    page = Path(str(probes.report(run))).read_text(encoding="utf-8")
    assert "run-v3" in page and "Share of this direct change T x" in page
    assert run["link"].direct_share.isna().all()  # as a projection, which that program did not measure
    assert "is due to the module's own weights" not in page


def test_later_columns_are_null_and_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    new = [
        Column("new_real", "…", since=LATER),
        Column("new_name", "…", "name", since=LATER),
        Column("new_bits", "…", "bytes", since=LATER),
    ]
    monkeypatch.setattr(TABLES, "_entries", dict(TABLES._entries))
    extend("changes", *new)  # with partitions
    extend("effects", *new)  # and without
    monkeypatch.setattr(MEASURES, "_entries", dict(MEASURES._entries))
    of_weights(Column("new_real", "…", since=LATER), Column("new_name", "…", "name", since=LATER))(_nothing)
    table("later", "tuned model", keys("tuned"), since=LATER)
    monkeypatch.setattr("probes.store.run.SCHEMA_VERSION", LATER)
    with caplog.at_level(logging.WARNING):
        run = probes.load(KEPT)
    names = [column.name for column in new]
    listed = {f"{name}.{column.name}" for name in run.tables for column in form_of(name) if column.since > 3}
    assert listed >= {
        "weights.new_real",
        "effects.new_bits",
        "changes.new_name",
        "tokens.role",
        "correlations.p_family",
    }
    (note,) = run.notes
    head, _, columns = note.partition("null in it: ")
    assert head == "written with schema version 3: " and set(columns.split(", ")) == listed
    assert [record.getMessage() for record in caplog.records] == [f"{KEPT}: {note}"]
    assert "later" not in run.tables
    for name, lacking in (("changes", names), ("effects", names), ("weights", names[:2])):
        rows = len(run.table(name))
        frame = run.df(name, columns=lacking)
        assert frame.isna().all().all() and len(frame) == rows
        assert all(run.arrow(name)[column].null_count == rows for column in lacking)
        counts = " + ".join(f"count({column})" for column in lacking)
        assert run.sql(f"SELECT {counts} AS n, count(*) AS r FROM {name}").values.tolist() == [[0, rows]]


def test_a_run_keeps_what_it_told(copy: Path) -> None:
    """Once what holds for every tuned model, by name what does not."""
    file = copy / "manifest.json"
    notes = {"a": ["quantised", "one prompt is long"], "b": ["tied", "one prompt is long"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"notes": notes}))
    assert probes.load(copy).notes[:3] == ("a: quantised", "one prompt is long", "b: tied")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"notes": {"a": ["quantised"]}}))
    assert probes.load(copy).notes[0] == "quantised"


def test_a_run_of_this_version_has_no_notes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("probes.store.run.SCHEMA_VERSION", 3)
    assert probes.load(KEPT).notes == () and not caplog.records
