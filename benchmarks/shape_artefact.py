"""SSA beside its null, and beside a random tuning vector: `python benchmarks/shape_artefact.py [BASE TUNED]`.

Prints the README's table: means over layers (of the embedded medical fine-tune, unless two others are named), output
side at ε = 0.05, then energy over its null at 10 % of the dimension on both sides. The random vector has the same norm
in every module.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import torch

import tv
from tv.checkpoints.pairing import WeightPair
from tv.measures.decomposition import decompose
from tv.measures.ssa import align

MODELS = Path(__file__).resolve().parent.parent / "data" / "models"
COLUMNS = [
    *("tuned SSA", "random SSA", "null"),
    *("tuned lift left", "random lift left", "tuned lift right", "random lift right"),
]


def main() -> None:
    """One row a module."""
    base, tuned = sys.argv[1:3] if len(sys.argv) > 2 else (MODELS / "base", MODELS / "medical")
    print(table(tv.open_pair(base, tuned)).round(3).to_string())


def table(pair: WeightPair) -> pd.DataFrame:
    """Means over layers of COLUMNS, a row per module."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for module in pair.modules:
        if module.kind == "linear" and module.component in ("attn", "mlp"):
            weight, delta = pair.weight(module), pair.delta(module)
            noise = torch.randn(delta.shape, generator=generator)
            decomposition = decompose(weight)
            for name, vector in (("tuned", delta), ("random", noise * delta.norm() / noise.norm())):
                for row in align(decomposition, vector, (0.05,)):
                    fixed = row.epsilon != row.epsilon
                    if row.side != "two_sided" and (fixed or row.side == "left"):
                        value = row.ssa**2 / row.ssa_null**2 if fixed else row.ssa
                        rows.append((module.name, f"{name} {'lift ' + row.side if fixed else 'SSA'}", value))
                        rows += [] if fixed or name == "random" else [(module.name, "null", row.ssa_null)]
    long = pd.DataFrame(rows, columns=["module", "column", "value"])
    return long.pivot_table(index="module", columns="column", values="value", sort=False)[COLUMNS]


if __name__ == "__main__":
    main()
