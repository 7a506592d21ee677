"""The `probes` command."""

from __future__ import annotations

from probes.cli import (
    answers,
    attention,
    attribute,
    check,
    demo,
    discover,
    edges,
    features,
    gate,
    init,
    logs,
    neurons,
    probe,
    query,
    representations,
    run,
    steer,
    verify,
    view,
)
from tv.cli.commands import entry
from tv.cli.registered import program

_WORKS = (
    demo.demo,
    init.init,
    run.run,
    discover.discover,
    attribute.attribute,
    steer.steer,
    features.features,
    attention.attention,
    edges.edges,
    neurons.neurons,
    probe.probe,
    representations.representations,
    logs.logs,
    answers.link,
    answers.diagnose,
    query.query,
    answers.report,
    answers.compare,
    gate.gate,
    check.check,
    verify.verify,
    view.view,
)
app = program("Show what fine-tuning changed inside a model, and which changes cause its behaviour.", _WORKS)


def main() -> None:
    """Run the command; bad input is one line on stderr and exit status 2."""
    entry(app, "probes", {"run": ("",), "demo": ("",)})
