"""SSA beside its null on the embedded pair, and beside a random tuning vector: `python benchmarks/shape_artefact.py`.

Prints the README's table: means over layers of the medical fine-tune, output side at ε = 0.05, then energy over its
null at 10 % of the dimension on both sides. The random vector has the same norm in every module.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

import tv
from tv.alignment import align, decompose

MODELS = Path(__file__).resolve().parent.parent / "data" / "models"


def main() -> None:
    """One row a module."""
    base, tuned = tv.open_checkpoint(MODELS / "base"), tv.open_checkpoint(MODELS / "medical")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for module in base.architecture.modules:
        if module.kind == "linear" and module.component in ("attn", "mlp"):
            weight = base.matrix(module)
            delta = tuned.matrix(module) - weight
            noise = torch.randn(delta.shape, generator=generator)
            decomposition = decompose(weight)
            for name, vector in (("tuned", delta), ("random", noise * delta.norm() / noise.norm())):
                for row in align(decomposition, vector, (0.05,)):
                    fixed = row.epsilon != row.epsilon
                    if row.side != "two_sided" and (fixed or row.side == "left"):
                        value = row.ssa**2 / row.ssa_null**2 if fixed else row.ssa
                        rows.append((module.name, f"{name} {'lift ' + row.side if fixed else 'SSA'}", value))
                        rows += [] if fixed or name == "random" else [(module.name, "null", row.ssa_null)]
    table = pd.DataFrame(rows, columns=["module", "column", "value"])
    wide = table.pivot_table(index="module", columns="column", values="value", sort=False)
    order = [
        "tuned SSA",
        "random SSA",
        "null",
        "tuned lift left",
        "random lift left",
        "tuned lift right",
        "random lift right",
    ]
    print(wide[order].round(3).to_string())


if __name__ == "__main__":
    main()
