"""`probes attribute`."""

from __future__ import annotations

from typing import Annotated

import typer

from probes.cli.effects import print_checks, print_effects
from probes.cli.options import RunPath
from tv.cli.options import Device, Dtype, Offload, among
from tv.cli.terminal import Stages
from tv.runtime.compute import Compute


def attribute(
    path: RunPath,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="path, graft, revert, patch, gradient, depth, split or shapley; give it again for several.",
            autocompletion=among("path", "graft", "revert", "patch", "gradient", "depth", "split", "shapley"),
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="target_nll, logit_diff, exact_match, kl, first_divergence, or module:function of your own.",
            autocompletion=among("logit_diff", "target_nll", "exact_match", "kl", "first_divergence"),
        ),
    ] = None,
    granularity: Annotated[
        list[str] | None, typer.Option(help="component, module, head, kv_head, expert or neuron; several too.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="random, shuffled or spectrum: a vector in T's place; several too.")
    ] = None,
    curves: Annotated[
        bool | None, typer.Option(help="Also the faithfulness curves: each ranking's top n moved together.")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
) -> None:
    """Attribute a run's behaviour change again, from the checkpoints that it names; what is not given is the suite's.

    Example: probes attribute reports/demo --method path --method revert --granularity module
    """
    import probes

    loaded = probes.load(path)
    with Stages() as stages:
        effects = probes.attribute(
            loaded,
            method=method,
            metric=metric,
            granularity=granularity,
            compute=Compute(device, dtype, offload, progress=stages.update),
            controls=control,
            curves=curves,
        )
    print_effects(effects)
    print_checks(loaded["checks"])
