"""`probes run --plan`: what a run would read, hold and compute, and how long that takes here, on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tv.cli.terminal import print_notes, print_table, say
from tv.errors import InputError
from tv.runtime.compute import Compute, Engine
from tv.runtime.progress import duration

if TYPE_CHECKING:
    from probes.methods import Cost
    from probes.planning import Plan


def print_plan(plan: Plan) -> None:
    """Print a plan: parameters, modules, sites, forwards, memory and disk."""
    from probes.store.table import size_text

    say(f"{plan.architecture.name}, {plan.blocks}")
    say("; ".join(f"{name} {n:,}" for name, n in plan.parameters.items()) + " parameters")
    count = sum(plan.modules.values())
    print_table(
        f"{count:,} modules",
        ["module", "kind", "shape", "how many"],
        [[name, kind, " × ".join(map(str, shape)), n] for (name, kind, shape), n in plan.modules.items()],
    )
    print_table("sites", ["site", "hooks"], [[site, n] for site, n in plan.sites.items()])
    lengths = f"{plan.tokens:,} tokens" if plan.tokens else "of unknown length"
    say(f"{plan.prompts:,} prompts, {lengths}")
    rows = [[step, _forwards(cost), cost.backwards] for step, cost in plan.forwards.items()]
    print_table("forwards per prompt", ["step", "forwards", "with a backward"], rows)
    memory = [[name, size_text(size)] for name, size in plan.memory.items()]
    print_table(f"memory in {plan.dtype}", ["what", "bytes"], [*memory, ["peak, about", size_text(plan.peak)]])
    if plan.tables:
        disk = [[table, size_text(size)] for table, size in plan.tables.items()]
        print_table("disk", ["table", "bytes"], [*disk, ["all", size_text(sum(plan.tables.values()))]])
    print_notes([*filter(None, [plan.uncovered]), *plan.notes])


def print_seconds(plan: Plan, device: str, dtype: str, workers: int, engine: Engine) -> None:
    """Print what capture and attribution take on this machine, by a short trial, and what of it each worker has."""
    from probes.spreading import Step, steps_of

    try:
        compute = Compute(device, dtype, workers=workers, engine=engine)
        steps = steps_of(plan, compute)
    except InputError as error:
        return say(f"no seconds are told: {error}")
    if not steps:
        return
    shared = sum(step.wall if step.each is None else step.each for step in steps)
    whole = Step("all", sum(step.cpu for step in steps), sum(step.wall for step in steps), shared)
    rows = [
        [
            step.name,
            duration(step.cpu),
            duration(step.wall),
            "one process" if step.each is None else duration(step.each),
        ]
        for step in (*steps, whole)
    ]
    columns = ["step", "CPU time", "here", f"each of {workers}"]
    last = None if compute.elsewhere else -1
    title = f"time on {device} in {dtype}, by a short trial"
    print_table(title, columns[:last], [row[:last] for row in rows])
    say("loading and proving the pair, weights, statistics, link and report come on top")
    if compute.elsewhere:
        say(
            f"each of {workers} workers loads the pair and holds the memory above; a worker is taken to be as fast as "
            "this machine with that share of its threads; a step with fewer tasks than workers leaves some idle"
        )


def _forwards(cost: Cost) -> str:
    if cost.most is None:
        return str(cost.forwards)
    return f"{cost.forwards} to {cost.most}" if cost.forwards else f"at most {cost.most}"
