"""Claims that were tested, topics, and evidence of the kind of tuning, as tables."""

from __future__ import annotations

import pandas as pd

from probes.reporting.discovery.found import Found, as_read
from probes.reporting.panel import Table
from probes.reporting.words import estimate, number, percent, q_value


def claim_table(found: Found) -> Table | None:
    """Every claim, those that hold first."""
    claims = found.claims
    if claims.empty:
        return None
    rows = [
        [
            "yes" if row["holds"] else "no",
            str(row["claim"]),
            str(row["n"]),
            number(row["value_base"]),
            number(row["value_tuned"]),
            estimate(row["difference"], row["lo"], row["hi"]),
            number(row["sham"]),
            q_value(row["q"]),
        ]
        for row in claims.sort_values(["holds", "q"], ascending=[False, True]).to_dict("records")
    ]
    columns = ["holds", "claim", "n", "base", "tuned", "difference", "largest sham", "q"]
    return Table("claim-table", "A claim a row, on the half of the texts that did not suggest it", columns, rows)


def topic_table(found: Found) -> Table | None:
    """Every topic, the largest first."""
    topics = found.rows("topics")
    if topics.empty:
        return None
    rows = [
        [
            str(row["topic"]),
            as_read(str(row["words"])),
            percent(row["share"]),
            estimate(row["weight"], row["lo"], row["hi"]),
            *(number(row[f"weight_{null}"]) for null in ("random", "sham", "floor")),
            q_value(row["q"]),
        ]
        for row in topics.sort_values("topic").to_dict("records")
    ]
    columns = ["topic", "words", "share of rises", "weight, logits", "largest random", "largest sham", "rounding", "q"]
    return Table("topic-table", "Words whose logits rise together, a topic a row", columns, rows)


def kind_table(found: Found) -> Table | None:
    """Every number by which kinds of tuning are distinguished."""
    kind = found.rows("tuning_kind")
    if kind.empty:
        return None
    rows = [
        [
            str(row["evidence"]),
            estimate(row["value"], row["lo"], row["hi"]),
            number(row["reference"]),
            _text(row["compared"]),
            _text(row["speaks_for"]) or f"cannot tell: {_text(row['cannot_tell'])}",
            _text(row["source"]),
        ]
        for row in kind.to_dict("records")
    ]
    columns = ["evidence", "value", "reference", "what is compared", "what it speaks for", "source"]
    return Table("kind-table", "A number a row", columns, rows)


def _text(value: object) -> str:
    return "" if pd.isna(value) else str(value)
