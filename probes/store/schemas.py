"""The Arrow schema of every table, made from the declarations of its columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import pyarrow as pa

from probes.store.forms.declare import TABLES
from tv.columns import Column, Kind, TableForm

#: Raised whenever a table or a column is added. A run of a newer version is not read.
SCHEMA_VERSION = 11
#: The oldest version that is read: what was added after it reads as null.
OLDEST_VERSION = 3
#: The `domain` of an effect over every prompt, besides those of each domain.
ALL_DOMAINS = "all"

TEXT = pa.string()
NAME = pa.dictionary(pa.int32(), pa.string())
SMALL, INT, REAL, BITS = pa.int16(), pa.int32(), pa.float32(), pa.binary()
#: `bytes` are fixed_size_binary in the files, as wide as the model needs.
_TYPES: Mapping[Kind, pa.DataType] = {
    "name": NAME,
    "text": TEXT,
    "int16": SMALL,
    "int32": INT,
    "int64": pa.int64(),
    "float32": REAL,
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "bytes": BITS,
}
#: The tables of weights that come with the program. The code that measures them declares them, and is slow to import.
WEIGHT_TABLES = ("weights", "alignment", "spectra", "cosines")


def form_of(name: str) -> TableForm:
    """The declaration of a table. Raises KeyError for an undeclared one."""
    if name in TABLES:
        form = TABLES[name]
        return form.with_columns(_linked(form)) if name == "link" else form
    return _slow_forms()[name]


def _slow_forms() -> dict[str, TableForm]:
    """Tables declared beside the functions that measure them, which are slow to import."""
    from probes.measures.declared import MEASURES
    from tv.measures.forms import forms

    return forms() | {name: measure.form for name, measure in MEASURES.items()}


@lru_cache
def schema_of(form: TableForm) -> pa.Schema:
    """The Arrow schema of a declared table; an interval follows its measure as `_lo` and `_hi`."""
    fields = []
    for column in form:
        fields.append((column.name, _TYPES[column.kind]))
        if column.interval:
            fields += [(f"{column.name}_{end}", _TYPES[column.kind]) for end in ("lo", "hi")]
    return pa.schema(fields)


class _Schemas(Mapping[str, pa.Schema]):
    """The schema of every table by name. Null stands for "not measured" and reads as NaN."""

    def __getitem__(self, name: str) -> pa.Schema:
        return schema_of(form_of(name))

    def __contains__(self, name: object) -> bool:
        if name in WEIGHT_TABLES or name in TABLES:
            return True
        return name in _slow_forms()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*WEIGHT_TABLES, *TABLES, *_slow_forms())))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Partitions(Mapping[str, tuple[str, ...]]):
    """Tables that are split into directories, and the columns that split them."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        form = TABLES[name] if name in TABLES else None if name in WEIGHT_TABLES else _slow_forms().get(name)
        if form is None or not form.partitions:
            raise KeyError(name)
        return form.partitions

    def __iter__(self) -> Iterator[str]:
        return (name for name, form in (*TABLES.items(), *_slow_forms().items()) if form.partitions)

    def __len__(self) -> int:
        return sum(1 for _ in self)


SCHEMAS: Mapping[str, pa.Schema] = _Schemas()
PARTITIONS: Mapping[str, tuple[str, ...]] = _Partitions()


def _linked(link: TableForm) -> list[Column]:
    """The weight measures that `link` does not name: those of other packages, which become its columns too."""
    from tv.measures.forms import forms

    return [column for column in forms()["weights"] if column.role == "weight" and column.name not in link.names]
