"""The rest of the error family: mistakes in the input of a run. One line each: what, where, what to do."""

from tv.errors import InputError


class SuiteError(InputError):
    """A suite file says something that cannot be run."""


class RunError(InputError):
    """A run directory cannot be written or read, or lacks what was asked for."""


class NothingFound(RunError):
    """A discovery found nothing where a later stage reads it: what the run has done so far is still right."""


class NothingMoved(RunError):
    """Attribution has nothing to move: no part of the change is expected to reach the metric."""


class ActivationError(InputError):
    """Activations cannot be captured, or are not finite."""
