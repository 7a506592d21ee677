"""The errors a person can cause. Each message is one line: what is wrong, where, what to do."""


class InputError(Exception):
    """Bad input. The command line prints the message alone and exits with status 2."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or two checkpoints do not belong together."""


class ArchitectureError(InputError):
    """The modules or sites of a model cannot be named with certainty."""
