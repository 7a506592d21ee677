"""A program and its commands. The options of registered functions are declared by a method's file.

The declaring files are slow to import. So they are imported when the command is parsed, completed or asked for help,
not for the list of commands or for another command.
"""

from __future__ import annotations

import inspect
import platform
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import wraps
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from tv.cli.commands import command
from tv.cli.help_texts import Command, Group
from tv.runtime.lasting import lasting

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

F = TypeVar("F", bound=Callable[..., Any])


def program(says: str, works: Iterable[Callable[..., Any]]) -> typer.Typer:
    """A program with a command for each function. `says` is what its help begins with."""
    app = typer.Typer(cls=Program, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(help=says)(_of_program)
    for work in works:
        app.command(cls=Command)(command(work))
    return app


def _print_versions(asked: bool) -> None:
    if asked:
        typer.echo(f"tuning-probes {version('tuning-probes')}")
        libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
        typer.echo(f"Python {platform.python_version()}, {libraries}")
        raise typer.Exit


def _of_program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Print versions and exit."),
    ] = False,
) -> None:
    """Options of the program itself."""


def options_from(
    options: Callable[[], Mapping[str, FieldInfo]],
    helps: Callable[[], Mapping[str, str]] = dict,
    default: str = "{}",
) -> Callable[[F], F]:
    """A decorator: the command function takes these options too, in its `**` parameter; those not given are left out.

    Args:
        options: The options by name, called late.
        helps: Help texts for parameters that the function names itself, called late.
        default: How the help states an option's default, which stands for {}.
    """

    def decorate(work: F) -> F:
        work.__dict__["registered"] = lambda: _extended(work, options(), helps(), default)
        return work

    return decorate


class Program(Group):
    """A program whose commands may take options that are declared elsewhere."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        registered = getattr(getattr(found, "callback", None), "registered", None)
        if registered is None:
            return name, found, rest
        alone = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        with lasting():
            alone.command(name, cls=Command)(command(registered()))
        return name, typer.main.get_command(alone), rest


def _extended(
    work: Callable[..., Any], options: Mapping[str, FieldInfo], helps: Mapping[str, str], default: str
) -> Any:
    """`work` with the options as parameters."""
    signature = inspect.signature(work, eval_str=True)
    named = [_helped(p, helps) for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(
            name,
            keyword,
            default=None,
            annotation=Annotated[
                _type_of(option) | None,
                typer.Option(help=_sentence(option), show_default=default.format(_in_words(option.default))),
            ],
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


def _sentence(option: FieldInfo) -> str | None:
    return f"{option.description.rstrip('.')}." if option.description else None


def _in_words(default: Any) -> str:
    """A default value in the help; sequences as a person writes them on the command line."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, list | tuple):
        default = ",".join(map(str, default))
    return "none" if default in ("", None) else str(default)
