"""Words by depth: what the lens reads of mean Δh, and what lies along T's singular directions."""

from __future__ import annotations

from dataclasses import dataclass

from probes.reporting.discovery.found import Found, as_read
from probes.reporting.panel import Table
from probes.reporting.words import estimate, number, percent, q_value

#: Rows of the table of directions, and of what excites them.
_DIRECTIONS, _EXCITED = 400, 40


@dataclass(frozen=True)
class Cell:
    """A token, how strongly its z colours it (0 to 1), the z, and whether it stands out of the nulls."""

    token: str
    strength: float
    z: str
    stands_out: bool


@dataclass(frozen=True)
class Grid:
    """One reading of the lens: the tokens of every depth, the deepest first."""

    name: str
    rows: list[tuple[int, list[Cell]]]


def lens_grids(found: Found) -> list[Grid]:
    """Every place, variant and reader; those with words that stand out first."""
    rows = found.rows("lens_words")
    if rows.empty:
        return []
    out = found.standing
    standing = set(zip(out.reading[out.part == "difference_lens"], out.token_id, strict=False))
    top = float(rows.z.max()) or 1.0
    grids: list[tuple[int, Grid]] = []
    for (place, variant, reader), own in rows.groupby(["place", "variant", "reader"], sort=False):
        name = f"{place} {variant} {reader}"
        by_depth = [
            (
                int(depth),
                [
                    Cell(
                        as_read(str(row.token)) if row.z > 0 else "–",  # Δh is 0 there
                        round(min(1.0, max(0.0, float(row.z) / top)), 2),
                        number(row.z, 2) if row.z > 0 else "",
                        (name, row.token_id) in standing,
                    )
                    for row in at.sort_values("rank").itertuples()
                ],
            )
            for depth, at in sorted(own.groupby("depth"), reverse=True)
        ]
        marked = sum(reading == name for reading, _ in standing)
        grids.append((-marked, Grid(name, by_depth)))
    return [grid for _, grid in sorted(grids, key=lambda item: item[0])]


def direction_table(found: Found) -> Table | None:
    """The tokens along every leading direction, a row each."""
    rows = found.rows("direction_words")
    if rows.empty:
        return None
    key = ["layer", "module", "expert", "use", "singular"]
    shown = []
    for (layer, module, expert, use, singular), own in rows.groupby(key, sort=False):
        ranked = own.sort_values("rank")
        words = ", ".join(f"“{as_read(str(row.token))}” {number(row.z, 2)}" for row in ranked.itertuples())
        name = f"{module} {expert}" if expert >= 0 else str(module)
        shown.append([str(layer), name, str(use), str(singular), percent(float(ranked.share.iloc[0])), words])
    more = f", the first {_DIRECTIONS} of {len(shown)}" if len(shown) > _DIRECTIONS else ""
    return Table(
        "direction-table",
        f"A singular direction a row, with its share of the energy of T and its tokens with their z{more}",
        ["layer", "module", "use", "direction", "share of T", "tokens along it"],
        shown[:_DIRECTIONS],
    )


def excitation_table(found: Found) -> Table | None:
    """The directions that own texts excite most beyond random ones, a row each."""
    rows = found.rows("direction_excitation")
    if rows.empty:
        return None
    order = rows.assign(quiet=~rows.stands_out.astype(bool)).sort_values(["quiet", "p"])
    shown = [
        [
            "yes" if row["stands_out"] else "no",
            str(row["layer"]),
            str(row["module"]),
            str(row["singular"]),
            percent(row["share"]),
            number(row["auroc"]),
            number(row["control"]),
            estimate(row["excess"], row["lo"], row["hi"]),
            number(row["random"]),
            number(row["sham"]),
            q_value(row["q"]),
        ]
        for row in order.head(_EXCITED).to_dict("records")
    ]
    first = rows.iloc[0]
    return Table(
        "excitation-table",
        f"How often one of {first.n_own} own texts ({first.own}) excites a direction more than one of {first.n_other} "
        f"others; the first {len(shown)} of {len(rows)}",
        [
            *("stands out", "layer", "module", "direction", "share of T", "AUROC", "random, mean"),
            *("less that mean", "95 % of random", "largest sham", "q"),
        ],
        shown,
    )
