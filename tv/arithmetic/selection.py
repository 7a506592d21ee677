"""Parts of a model by pattern: layers, modules, components, experts, parameter names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from tv.arithmetic.methods.layout import Piece
from tv.errors import InputError, choices

_RANGE = re.compile(r"(layer|expert)=(-?\d+)(?:-(\d+))?")


def select(
    pieces: Mapping[str, Sequence[Piece]], only: Iterable[str] = (), exclude: Iterable[str] = ()
) -> dict[str, list[Piece]]:
    """The pieces that a pattern of `only` names (without any: all), except those that one of `exclude` names.

    A pattern is `layer=3`, `layer=0-3`, `expert=2`, a module (`gate`, `q`, `final_norm`), a component (`attn`, `mlp`,
    `embed`, `unembed`), `norm` or `bias` for all of these, or a parameter's name, where `*` stands for anything. Of
    several, joined by commas, all must hold: `layer=0-3,mlp`. Raises InputError for a pattern that names nothing, and
    where nothing is left.
    """
    every = [piece for group in pieces.values() for piece in group]
    wanted = _named(every, only) if (only := list(only)) else set(every)
    wanted -= _named(every, exclude)
    if not wanted:
        raise InputError("the patterns leave no parameter; nothing would change")
    selected = {name: [piece for piece in group if piece in wanted] for name, group in pieces.items()}
    return {name: group for name, group in selected.items() if group}


def _named(pieces: Sequence[Piece], patterns: Iterable[str]) -> set[Piece]:
    named: set[Piece] = set()
    for pattern in patterns:
        matches = {piece for piece in pieces if all(_holds(part.strip(), piece) for part in pattern.split(","))}
        if not matches:
            words = dict.fromkeys(word for piece in pieces for word in (piece.component, piece.name))
            raise InputError(
                f"pattern {pattern!r} names no parameter{choices(pattern, words)}, norm, bias, layer=0-3, and globs of "
                "parameter names"
            )
        named |= matches
    return named


def _holds(part: str, piece: Piece) -> bool:
    range_ = _RANGE.fullmatch(part)
    if range_:
        first = int(range_[2])
        return first <= getattr(piece, range_[1]) <= int(range_[3] or first)
    if part == "norm":
        return piece.name.endswith("norm")
    if part == "bias":
        return piece.parameter.endswith("bias")
    return part in (piece.name, piece.component) or fnmatchcase(piece.parameter, part)
