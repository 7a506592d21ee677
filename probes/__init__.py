"""Activation space: what fine-tuning changed inside a running model, and which of the changes cause its behaviour.

run = probes.run("data/suites/demo.yaml")
run["changes"]                                  # a pandas DataFrame
run.df("ledger", columns=["layer", "direct_norm"], where=[("module", "==", "down")])
"""

from typing import TYPE_CHECKING

from tv.exports import export

if TYPE_CHECKING:
    from probes import plot
    from probes.diagnose import diagnose
    from probes.errors import ActivationError, RunError, SuiteError
    from probes.job import attribute, run
    from probes.link import link
    from probes.report import report
    from probes.report.compare import compare, comparison
    from probes.store import Run, load
    from tv.errors import InputError, PromptError

__all__ = [
    "ActivationError",
    "InputError",
    "PromptError",
    "Run",
    "RunError",
    "SuiteError",
    "attribute",
    "compare",
    "comparison",
    "diagnose",
    "link",
    "load",
    "plot",
    "report",
    "run",
]

export(__name__)
