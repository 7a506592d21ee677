"""The Python API on the embedded models: run a suite, query its tables, look at the causes.

python examples/python_api.py [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import probes
import tv

DATA = Path(__file__).resolve().parent.parent / "data"


def main(out: Path, suite: Path = DATA / "suites" / "demo.yaml") -> None:
    """A first look at what medical fine-tuning did."""
    alignment = tv.ssa(DATA / "models" / "base", DATA / "models" / "medical")
    fixed = alignment[alignment.epsilon.isna() & (alignment["head"] == -1)]
    print("SSA energy over its null at 10 % of the dimension, mean over layers")
    lift = (fixed.ssa**2 / fixed.ssa_null**2).groupby([fixed.module, fixed.side]).mean().unstack()
    print(lift.round(2).to_string())

    run = probes.run(suite, out=out, force=True)
    print(run)
    flips = run.df("gates", columns=["tuned", "layer", "flip_rate", "chance_flip_rate"])
    print(flips.groupby(["tuned", "layer"]).mean().round(4).to_string())
    effects = run["effects"]
    print(effects.reindex(effects.effect.abs().sort_values(ascending=False).index).head(8).to_string(index=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("reports/example-run"))
