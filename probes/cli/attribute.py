"""`probes attribute`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from probes.cli.effects import print_checks, print_effects
from probes.cli.options import RunPath
from tv.cli.options import Device, Dtype, Engine, Offload, Workers, among
from tv.cli.registered import options_from
from tv.cli.terminal import Stages
from tv.runtime.compute import Compute


def _options() -> Mapping[str, FieldInfo]:
    from probes.methods import all_options

    return all_options()


def _helps() -> dict[str, str]:
    from probes.suite import metric_names

    return {
        "method": f"{', '.join(_methods())}; give it again for several.",
        "metric": f"{', '.join(metric_names())}, discovered:PART/READING, or module:function of your own.",
    }


def _methods() -> list[str]:
    from probes.methods import all_methods

    return [method.name for method in all_methods()]


def _metrics() -> list[str]:
    from probes.suite import metric_names

    return list(metric_names())


@options_from(_options, _helps)
def attribute(
    path: RunPath,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method; give it again for several.", autocompletion=among(_methods)),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="The metric of effects.", autocompletion=among(_metrics)),
    ] = None,
    granularity: Annotated[
        list[str] | None, typer.Option(help="component, module, head, kv_head, expert or neuron; several too.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="random, shuffled, spectrum …: a vector in T's place; several too.")
    ] = None,
    curves: Annotated[
        bool | None, typer.Option(help="Also the faithfulness curves: each ranking's top n moved together.")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    workers: Workers = 1,
    engine: Engine = "local",
    **options: Any,
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
            compute=Compute(device, dtype, offload, workers, engine, progress=stages.update),
            controls=control,
            curves=curves,
            **options,
        )
    print_effects(effects)
    print_checks(loaded["checks"])
