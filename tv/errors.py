"""The errors a person can cause. Each message is one line: what is wrong, where, what to do."""

#: Of a message; what stands in a file can be as long as it likes.
_MOST_CHARACTERS = 2_000


class InputError(Exception):
    """Bad input. The command line prints the message alone and exits with status 2.

    One printable line, whatever the file that it quotes holds: names with newlines, or what a terminal would obey.

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


def printable(text: str) -> str:
    """`text` with what a terminal would obey or cannot show spelled out: \\x1b for an escape, \\n for a line's end."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def first_line(error: Exception) -> str:
    """What an exception of a library says, cut to one line; its class where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
