"""The help of every command: flags without a type, repeatable options with the type of one value, plain defaults."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Helped:
    """What is shown of parameters. Help is the last thing that a command does, so parameters may be changed for it."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        for one in self.get_params(ctx):  # type: ignore[attr-defined]
            if getattr(one, "is_flag", False):
                one.metavar = ""
                continue
            kind = re.sub(r"list\[(.+)\]", r"\1", one.display_type(ctx)).replace(" range", "").replace("Path", "path")
            one.display_type = partial(_given, kind)
            if isinstance(one.show_default, str):  # typer puts such words in parentheses
                one.default, one.show_default = one.show_default, True
        super().format_help(ctx, formatter)  # type: ignore[misc]


def _given(kind: str, ctx: Any) -> str:
    return kind


class Command(_Helped, TyperCommand):
    """A command."""


class Group(_Helped, TyperGroup):
    """A program, or a group of its commands."""
