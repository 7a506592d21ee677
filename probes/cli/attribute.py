"""`probes attribute`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from probes.cli.effects import print_checks, print_effects, tell_next
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
        "method": f"{', '.join(_methods())}; repeatable.",
        "metric": f"{', '.join(metric_names())}, discovered:PART/READING, or your own module:function.",
    }


def _methods() -> list[str]:
    from probes.methods import all_methods

    return [method.name for method in all_methods()]


def _metrics() -> list[str]:
    from probes.suite import metric_names

    return list(metric_names())


@options_from(_options, _helps, default="the suite's, else {}")
def attribute(
    path: RunPath,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A method; repeatable.", show_default="the suite's", autocompletion=among(_methods)),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="The metric of the effects.", show_default="the suite's", autocompletion=among(_metrics)),
    ] = None,
    granularity: Annotated[
        list[str] | None,
        typer.Option(
            help="component, module, head, kv_head, expert or neuron; repeatable.", show_default="the suite's"
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="A control vector in T's place: random, shuffled, spectrum …; repeatable.",
            show_default="the suite's",
        ),
    ] = None,
    curves: Annotated[
        bool | None,
        typer.Option(
            help="Also measure faithfulness curves: move the top n of each ranking together.",
            show_default="the suite's",
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    offload: Offload = False,
    workers: Workers = 1,
    engine: Engine = "local",
    **options: Any,
) -> None:
    """Attribute the behaviour change of a run again, with its checkpoints and, by default, the settings of its suite.

    Example: probes attribute reports/demo --method path --method revert --granularity module
    """
    from probes.store.run import load
    from probes.suite import with_attribution

    given = {"methods": method, "metric": metric, "granularity": granularity, "controls": control, "curves": curves}
    loaded = load(path)
    with_attribution(loaded.manifest["suite"], given | options)  # a mistake is reported before torch is imported
    import probes

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
    tell_next(path)
