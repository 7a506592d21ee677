"""Activation space: what fine-tuning changed inside a running model, and which of the changes cause its behaviour.

run = probes.run("data/suites/demo.yaml")
run["changes"]                                  # a pandas DataFrame
run.df("ledger", columns=["layer", "direct_norm"], where=[("module", "==", "down")])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes import plot as plot
    from probes.errors import ActivationError as ActivationError, RunError as RunError, SuiteError as SuiteError
    from probes.gating.check import Checked as Checked, check as check
    from probes.gating.planning import gate_plan as gate_plan
    from probes.gating.verdicts import Gate as Gate, gate as gate
    from probes.job.again import attribute as attribute
    from probes.job.attention import attention as attention
    from probes.job.discover import discover as discover
    from probes.job.edges import edges as edges
    from probes.job.features import features as features
    from probes.job.job import Job as Job
    from probes.job.logged import logs as logs
    from probes.job.neurons import neurons as neurons
    from probes.job.prepare import prepare as prepare
    from probes.job.probing import probe as probe
    from probes.job.representations import representations as representations
    from probes.job.steer import steer as steer
    from probes.job.verify import Check as Check, RunVerified as RunVerified, verify as verify
    from probes.linking import link as link
    from probes.planning import Plan as Plan, plan as plan
    from probes.reporting.compare.page import compare as compare, comparison as comparison
    from probes.reporting.diagnose import diagnose as diagnose
    from probes.reporting.report import report as report
    from probes.running import run as run
    from probes.starting.init import init as init
    from probes.store.run import Run as Run, load as load
    from probes.store.table import Table as Table
    from probes.suite import Suite as Suite, load_suite as load_suite
    from probes.viewing.opening import view as view
    from probes.watch.store import load_watch as load_watch
    from probes.watch.training_probe import TrainingProbe as TrainingProbe
    from tv.errors import InputError as InputError, PromptError as PromptError
    from tv.runtime.compute import Compute as Compute
    from tv.runtime.progress import Progress as Progress

#: What each module exports here. A module is imported when a name is first used: no command's help waits for torch.
_EXPORTS = {
    "probes": ("plot",),
    "probes.errors": (
        "ActivationError",
        "RunError",
        "SuiteError",
    ),
    "probes.gating.check": (
        "Checked",
        "check",
    ),
    "probes.gating.planning": ("gate_plan",),
    "probes.gating.verdicts": (
        "Gate",
        "gate",
    ),
    "probes.job.again": ("attribute",),
    "probes.job.attention": ("attention",),
    "probes.job.discover": ("discover",),
    "probes.job.features": ("features",),
    "probes.job.edges": ("edges",),
    "probes.job.job": ("Job",),
    "probes.job.logged": ("logs",),
    "probes.job.neurons": ("neurons",),
    "probes.job.prepare": ("prepare",),
    "probes.running": ("run",),
    "probes.job.probing": ("probe",),
    "probes.job.representations": ("representations",),
    "probes.job.steer": ("steer",),
    "probes.job.verify": (
        "Check",
        "RunVerified",
        "verify",
    ),
    "probes.linking": ("link",),
    "probes.planning": (
        "Plan",
        "plan",
    ),
    "probes.reporting.compare.page": (
        "compare",
        "comparison",
    ),
    "probes.reporting.diagnose": ("diagnose",),
    "probes.reporting.report": ("report",),
    "probes.starting.init": ("init",),
    "probes.store.run": (
        "Run",
        "load",
    ),
    "probes.store.table": ("Table",),
    "probes.suite": (
        "Suite",
        "load_suite",
    ),
    "probes.viewing.opening": ("view",),
    "probes.watch.store": ("load_watch",),
    "probes.watch.training_probe": ("TrainingProbe",),
    "tv.errors": (
        "InputError",
        "PromptError",
    ),
    "tv.runtime.compute": ("Compute",),
    "tv.runtime.progress": ("Progress",),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] == __name__:  # a submodule
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
