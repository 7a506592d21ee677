"""The errors a person can cause. Each message is one line: what is wrong, where, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

#: The longest message: what it quotes from a file can be of any length.
_MOST_CHARACTERS = 2_000
#: The most names that a message lists.
_MOST_NAMES = 60
#: What a note begins with that no reader may miss.
WARNING = "warning: "


class InputError(Exception):
    """Bad input. The command line prints the message alone and exits with status 2.

    One printable line, even where it quotes newlines or terminal control codes from a file.

    Examples:
        >>> str(tv.InputError("no\\nsuch file"))
        'no such file'
    """

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        line = line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 1] + "…"
        return printable(line)


class CheckpointError(InputError):
    """A checkpoint cannot be read, or two checkpoints do not belong together."""


class ArchitectureError(InputError):
    """The modules or sites of a model cannot be named with certainty."""


class PromptError(InputError):
    """A prompt set cannot be read, or a prompt cannot be encoded."""


class LackOfMemory(InputError):
    """This machine has too little memory. What is done already is right, and is kept."""


def printable(text: str) -> str:
    """`text` with unprintable and terminal control characters spelled out: \\x1b for an escape, \\n for a newline."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: Exception) -> str:
    """The first line of an exception's message; its class where the message is empty."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def meant(name: object, known: Iterable[object]) -> str:
    """A question to add to a message about an unknown name: whether a similar one was meant. Empty without such a name.

    Examples:
        >>> meant("gats", ["gates", "tokens"]), meant("rows", ["gates", "tokens"])
        ("; did you mean 'gates'?", '')
    """
    folded = {str(one).casefold(): str(one) for one in known}
    close = get_close_matches(str(name).casefold(), folded, 1, 0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def choices(name: object, known: Iterable[object]) -> str:
    """The end of a message about an unknown name: the similar one, where there is one, and the names that exist.

    Examples:
        >>> choices("gats", ["gates", "tokens"])
        "; did you mean 'gates'? There are gates, tokens"
    """
    names = [str(one) for one in known]
    question = meant(name, names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    there = "the only one is" if len(names) == 1 else "there are"
    listed = ", ".join(names[:_MOST_NAMES]) or "none"
    return f"{question or ';'} {there.capitalize() if question else there} {listed}{more}"
