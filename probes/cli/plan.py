"""`probes run --plan`: what a run would read, hold and compute, on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tv.cli.terminal import print_notes, print_table, say

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


def _forwards(cost: Cost) -> str:
    if cost.most is None:
        return str(cost.forwards)
    return f"{cost.forwards} to {cost.most}" if cost.forwards else f"at most {cost.most}"
