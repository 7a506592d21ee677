"""The options that say how files of prompts are read: the same ones in every command that reads prompts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tv.errors import InputError, choices

if TYPE_CHECKING:
    from tv.prompts.sets import PromptSet

Columns = Annotated[
    list[str] | None,
    typer.Option(help="The column that holds each key: text=question,target=answer.", metavar="KEY=NAME"),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Read only the first rows of each file.", show_default="all")]
Domain = Annotated[
    str | None, typer.Option(help="The domain of rows that do not name one.", show_default="the file's name")
]
Chat = Annotated[bool, typer.Option("--chat", help="Format every prompt with the chat template.")]
Template = Annotated[
    Literal["tuned"] | None,
    typer.Option(help="tuned: like --chat, but both models use the tuned model's template."),
]
System = Annotated[
    str | None,
    typer.Option(help="The system message of conversations that have none; needs --chat or --chat-template."),
]
ChatOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A variable of the chat template, such as enable_thinking=false; needs --chat or --chat-template. "
        "Repeatable.",
        metavar="NAME=VALUE",
    ),
]
_TALK = {
    "chat": (Chat, False),
    "chat_template": (Template, None),
    "system": (System, None),
    "chat_option": (ChatOption, None),
}
_OPTIONS = {
    "columns": (Columns, None),
    "limit": (Limit, None),
    "domain": (Domain, None),
    **_TALK,
}


def reads_prompts(work: Callable[..., None]) -> Callable[..., None]:
    """A decorator: the command function takes the options too, in its `**` parameter, for `prompt_sets`."""
    return _taking(work, _OPTIONS)


def converses(work: Callable[..., None]) -> Callable[..., None]:
    """The same of the options that say how a task's questions become conversations, for `chat_of`."""
    return _taking(work, _TALK)


def _taking(work: Callable[..., None], options: Mapping[str, tuple[Any, Any]]) -> Callable[..., None]:
    signature = inspect.signature(work, eval_str=True)
    named = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter(name, keyword, default=default, annotation=kind)
        for name, (kind, default) in options.items()
        if name not in signature.parameters
    ]

    @wraps(work)
    def extended(**given: Any) -> None:
        work(**given)

    extended.__signature__ = signature.replace(parameters=[*named, *more])  # type: ignore[attr-defined]
    return extended


def prompt_sets(files: Collection[Path], **options: Any) -> list[PromptSet]:
    """The files as prompt sets. Raises InputError for options that cannot be used."""
    from tv.prompts.sets import PromptSet

    settings = settings_of(**options)
    if settings and not files:
        raise InputError(
            f"--{next(iter(settings))} says how to read prompts, but no prompts are given; add --prompts FILE"
        )
    return [PromptSet(file=file, **settings) for file in files]


def chat_of(**options: Any) -> bool | dict[str, Any]:
    """How questions become conversations. Raises InputError for options that cannot be used."""
    chat: bool | dict[str, Any] = settings_of(**options).get("chat", False)
    return chat


def settings_of(
    columns: list[str] | None = None,
    limit: int | None = None,
    domain: str | None = None,
    chat: bool = False,
    chat_template: str | None = None,
    system: str | None = None,
    chat_option: list[str] | None = None,
) -> dict[str, Any]:
    """The settings of a prompt set that the options give; those not given are left out."""
    options = {name: _value(text) for name, text in _pairs(chat_option, "--chat-option", "enable_thinking=false")}
    talk = {"template": chat_template, "system": system, "options": options or None}
    talk = {name: value for name, value in talk.items() if value is not None}
    chat = chat or chat_template is not None
    if talk and not chat:
        option = "--system" if system is not None else "--chat-option"
        raise InputError(f"{option} needs a conversation; add --chat or --chat-template tuned")
    if system is not None and not system.strip():
        raise InputError("--system: the system message is blank; leave it out or write one")
    given = {
        "columns": _columns(columns),
        "limit": limit,
        "domain": domain or None,
        "chat": (talk or True) if chat else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _columns(given: list[str] | None) -> dict[str, str] | None:
    from tv.prompts.sets import KEYS

    columns = dict(_pairs(given, "--columns", "text=question,target=answer"))
    odd = next((key for key in columns if key not in KEYS), None)
    if odd is not None:
        raise InputError(f"--columns {odd}=…: no key {odd!r}{choices(odd, KEYS)}")
    return columns or None


def _pairs(given: list[str] | None, option: str, example: str) -> list[tuple[str, str]]:
    """NAME=VALUE, several apart by commas; a comma that no further NAME= follows belongs to the value."""
    pairs = []
    for text in given or []:
        for part in re.split(r",(?=\w+=)", text):
            name, equals, value = part.partition("=")
            if not (name.strip() and equals and value):
                raise InputError(f"{option} {text!r}: expected the form {example}")
            pairs.append((name.strip(), value))
    return pairs


def _value(text: str) -> str | bool | int:
    """A value as a suite's YAML would read it."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if re.fullmatch(r"-?\d+", text) else text
