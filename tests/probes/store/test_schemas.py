"""The schemas are versioned: what a table of version 3 holds never changes, and what comes later says since when."""

import hashlib

import pyarrow as pa
import pytest

from probes.store.schemas import PARTITIONS, SCHEMA_VERSION, SCHEMAS, form_of, schema_of
from tv.columns import Column, TableForm, keys

#: Of version 3's columns, their types and order, and what tables are split by.
VERSION_3 = "9a4d9288ec3fc6ba"


def test_what_version_3_holds_stays() -> None:
    forms = {name: form_of(name) for name in SCHEMAS if form_of(name).since <= 3}
    old = {
        name: schema_of(TableForm(name, form.rows, tuple(c for c in form if c.since <= 3)))
        for name, form in forms.items()
    }
    columns = [
        f"{table} {column.name} {column.type} {column.name in PARTITIONS.get(table, ())}"
        for table in sorted(old)
        for column in old[table]
    ]
    assert hashlib.sha256("\n".join(columns).encode()).hexdigest()[:16] == VERSION_3


def test_what_came_later_is_in_the_schema_version() -> None:
    since = [form.since for form in map(form_of, SCHEMAS)]
    since += [column.since for name in SCHEMAS for column in form_of(name)]
    assert max(since) == SCHEMA_VERSION


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_is_explained_and_its_null_is_there(table: str) -> None:
    form = form_of(table)
    for column in form:
        assert column.means and column.title
        if isinstance(column.null, str):
            assert column.null in form.names


def test_an_interval_stands_behind_its_measure() -> None:
    form = TableForm("t", "row", (*keys("layer"), Column("rate", "…", interval=True), Column("rest", "…")))
    assert schema_of(form).names == ["layer", "rate", "rate_lo", "rate_hi", "rest"]
    assert schema_of(form).field("rate_hi").type == pa.float32()
