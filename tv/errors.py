"""The errors a person can cause. Each message is one line: what is wrong, where, what to do."""


class InputError(Exception):
    """Bad input. The command line prints the message alone and exits with status 2."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or two checkpoints do not belong together."""


class ArchitectureError(InputError):
    """The modules or sites of a model cannot be named with certainty."""


class PromptError(InputError):
    """A prompt set cannot be read, or a prompt cannot be encoded."""


def first_line(error: Exception) -> str:
    """What an exception of a library says, cut to one line; its class where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__
