"""Components of Δh, the tokens whose states move most, and what steering by mean Δh took, as tables."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.reporting.discovery.found import Found, as_read
from probes.reporting.panel import Table
from probes.reporting.words import estimate, number

#: Tokens shown of every depth.
_TOKENS = 6
_NULLS = {"sham": "largest sham", "random": "largest random", "floor": "rounding"}


def component_table(found: Found) -> Table | None:
    """Every component of Δh, with its words and the first of its places."""
    rows = found.rows("activation_components")
    if rows.empty:
        return None
    key = ["depth", "method", "component"]
    words, places = (found.rows(f"component_{of}") for of in ("words", "places"))
    words_of = dict(_by_component(words, key))
    places_of = dict(_by_component(places, key))
    shown = [
        [
            *(str(row[name]) for name in key),
            estimate(row["share"], row["lo"], row["hi"]),
            *(number(row[f"share_{null}"]) for null in _NULLS),
            words_of.get(tuple(row[name] for name in key), "–"),
            places_of.get(tuple(row[name] for name in key), "–"),
        ]
        for row in rows.sort_values(key).to_dict("records")
    ]
    columns = [*key, "share of the other half's Δh", *_NULLS.values(), "reads as", "largest at"]
    return Table("component-table", "A component a row, from the half of the texts that chooses", columns, shown)


def _by_component(rows: pd.DataFrame, key: list[str]) -> Iterator[tuple[tuple[object, ...], str]]:
    if not rows.empty:
        for at, own in rows.groupby(key, sort=False):
            yield at, ", ".join(f"“{as_read(str(token))}”" for token in own.sort_values("rank").token)


def moved_table(found: Found) -> Table | None:
    """Of every depth, how far states move and which tokens' move most."""
    rows = found.rows("activation_map")
    if rows.empty:
        return None
    shown = []
    for depth, own in rows.groupby("depth"):
        largest = own[own["size"] > 0].nlargest(_TOKENS, "size").to_dict("records")
        tokens = [
            f"“{as_read(str(row['token']))}” {number(row['size'])} (shams at most {number(row['size_sham'])})"
            if pd.notna(row["size_sham"])
            else f"“{as_read(str(row['token']))}” {number(row['size'])}"
            for row in largest
        ]
        medians = [number(own[name].median()) for name in ("size", *(f"size_{null}" for null in _NULLS))]
        shown.append([str(depth), *medians, ", ".join(tokens) or "–"])
    columns = ["depth", "median", *(f"median, {null}" for null in _NULLS.values()), "tokens that move most"]
    return Table("moved-table", "‖Δh‖/‖h‖ of a token's state, a depth a row", columns, shown)


def steering_table(found: Found) -> Table | None:
    """Every kind of place whose mean Δh steers the base."""
    rows = found.rows("steering")
    if rows.empty:
        return None
    shown = [
        [
            str(row["place"]),
            str(row["depth"]),
            *(number(row[name]) for name in ("length", "length_sham", "length_floor")),
            estimate(row["kl"], row["lo"], row["hi"]),
            *(number(row[name]) for name in ("kl_sham", "kl_floor")),
        ]
        for row in rows.to_dict("records")
    ]
    lengths, kl = ("length, shares of ‖h‖", "longest sham", "rounding"), ("KL, nats", "largest sham", "rounding")
    columns = ["place", "depth", *lengths, *kl]
    return Table("steering-table", "A kind of place a row; what is written then is among the samples", columns, shown)
