"""Options of registered functions: a method's file declares them, and its command accepts and explains them.

The declaring files are slow to import. So they are imported when the command is parsed, completed or asked for help,
not for the list of commands or for another command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer
from typer.core import TyperGroup

from tv.runtime.lasting import lasting

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

F = TypeVar("F", bound=Callable[..., Any])


def options_from(
    options: Callable[[], Mapping[str, FieldInfo]], helps: Callable[[], Mapping[str, str]] = dict
) -> Callable[[F], F]:
    """A decorator: the command function takes these options too, in its `**` parameter; those not given are left out.

    Args:
        options: The options by name, called late.
        helps: Help texts for parameters that the function names itself, called late.
    """

    def decorate(work: F) -> F:
        work.__dict__["registered"] = lambda: _extended(work, options(), helps())
        return work

    return decorate


class Group(TyperGroup):
    """A group whose commands may take options that are declared elsewhere."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        registered = getattr(getattr(command, "callback", None), "registered", None)
        if registered is None:
            return name, command, rest
        from tv.cli.commands import command as shared

        alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        with lasting():
            alone.command(name)(shared(registered()))
        return name, typer.main.get_command(alone), rest


def _extended(work: Callable[..., Any], options: Mapping[str, FieldInfo], helps: Mapping[str, str]) -> Any:
    """`work` with the options as parameters."""
    signature = inspect.signature(work, eval_str=True)
    named = [_helped(p, helps) for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(
            name,
            keyword,
            default=None,
            annotation=Annotated[_type_of(option) | None, typer.Option(help=_sentence(option))],
        )
        for name, option in options.items()
        if name not in signature.parameters
    ]

    @wraps(work)
    def extended(**given: Any) -> None:
        work(**{name: value for name, value in given.items() if name not in options or value is not None})

    extended.__signature__ = signature.replace(parameters=[*named, *more])  # type: ignore[attr-defined]
    del extended.__dict__["registered"]
    return extended


def _helped(parameter: inspect.Parameter, helps: Mapping[str, str]) -> inspect.Parameter:
    if parameter.name not in helps:
        return parameter
    kind, info, *_ = get_args(parameter.annotation)
    told = copy(info)
    told.help = helps[parameter.name]
    return parameter.replace(annotation=Annotated[kind, told])


def _type_of(option: FieldInfo) -> Any:
    """What a command line can give: a number, a boolean or a word."""
    return option.annotation if option.annotation in (int, float, bool, str) else str


def _sentence(option: FieldInfo) -> str:
    said = (option.description or "").rstrip(".")
    return f"{said}; {option.default} if not given." if said else f"{option.default} if not given."
