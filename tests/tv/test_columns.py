"""Columns and tables as they are declared."""

import pytest

from tv.columns import KEYS, Column, TableForm, keys


def test_a_column_is_called_by_its_words_or_its_name() -> None:
    assert Column("kappa_left", "…").title == "kappa left"
    assert Column("kappa_left", "…", words="κ, output side").title == "κ, output side"


def test_a_table_keeps_the_order_of_its_columns() -> None:
    table = TableForm("norms", "module", (*keys("tuned layer"), Column("norm", "‖T‖")))
    assert table.names == ("tuned", "layer", "norm") and table["layer"] is KEYS["layer"]
    assert table.with_columns([Column("share", "of ‖T‖²")]).names == ("tuned", "layer", "norm", "share")


def test_no_column_is_declared_twice() -> None:
    table = TableForm("norms", "module", keys("tuned"))
    with pytest.raises(ValueError, match="norms: column 'tuned' is declared twice"):
        table.with_columns(keys("tuned"))
