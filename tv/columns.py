"""A column, declared once: schemas, documentation, report texts, plots, headings and the link all use it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

#: What a column holds: one of few names, a text, an index, a count, a number, a truth value, or packed bytes.
Kind = Literal["name", "text", "int16", "int32", "int64", "float32", "float64", "bool", "bytes"]
#: Whether `link` compares a column with others, and as what.
Role = Literal["", "weight", "activation", "cause"]


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    means: str  # a phrase for the documentation
    kind: Kind = "float32"
    unit: str = ""  # "nats", "logits", "degrees"; a share has none
    words: str = ""  # its label in figures, reports and headings; empty: its name
    null: str | float | None = None  # the column, or the number, that it would equal without any preference
    centre: float | None = None  # the middle of a plot's colour scale; None: the scale starts at the least value
    interval: bool = False  # whether `name_lo` and `name_hi` stand beside it
    role: Role = ""
    since: int = 3  # the schema version that added it; null in runs of earlier ones

    @property
    def title(self) -> str:
        """Its label for readers."""
        return self.words or self.name.replace("_", " ")


@dataclass(frozen=True)
class TableForm:
    """What a table holds: what a row is about, and its columns in order."""

    name: str
    rows: str  # what a row is about: "place of a prompt and module"
    columns: tuple[Column, ...]
    partitions: tuple[str, ...] = ()  # the columns that partition its directories
    since: int = 3

    def __getitem__(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def with_columns(self, more: Iterable[Column]) -> TableForm:
        """The same table with further columns at its end. Raises ValueError for one that it already has."""
        columns = (*self.columns, *more)
        twice = sorted({column.name for column in columns if [c.name for c in columns].count(column.name) > 1})
        if twice:
            raise ValueError(f"{self.name}: column {twice[0]!r} is declared twice")
        return replace(self, columns=columns)


#: Columns that say what a row is about, the same in every table.
KEYS: Mapping[str, Column] = {
    column.name: column
    for column in (
        Column("tuned", "the tuned model, as the suite names it", "name"),
        Column("model", "`base`, or the tuned model's name", "name"),
        Column("prompt_id", "a prompt", "name"),
        Column("pos", "a place in a prompt, counted from its first token (0)", "int32"),
        Column("layer", "from 0; −1 is the embedding, `n_layers` the final norm and the unembedding", "int16"),
        Column("component", "a writer into the residual stream: `attn`, `mlp`, `embed`", "name"),
        Column(
            "module",
            "one weight matrix: `embed q k v o gate up down router unembed`, a norm, a bias, …",
            "name",
        ),
        Column("head", "a head's index, or −1: all of them together", "int16"),
        Column("expert", "an expert's index, or −1: all of them together", "int16"),
        Column("neuron", "a neuron's index, or −1: all of them together", "int32"),
        Column("domain", "the domain of prompts; `all` is every prompt", "name"),
        Column("metric", "the behaviour that was measured", "name"),
        Column("method", "how an effect was attributed", "name"),
        Column("direction", "from which model to which", "name"),
        Column("control", "the vector that stood in for T; empty for T itself", "name"),
        Column("granularity", "what a unit is: `component module head kv_head expert neuron type all`", "name"),
        Column("site", "the place where a hook read", "name"),
    )
}


def keys(names: str) -> tuple[Column, ...]:
    """Key columns by their names, separated by blanks.

    Examples:
        >>> [column.kind for column in keys("tuned layer")]
        ['name', 'int16']
    """
    return tuple(KEYS[name] for name in names.split())
