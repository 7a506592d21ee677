"""Searched scales against plain addition, on every pair of embedded domains.

    python -m benchmarks.search [--over vectors] [--method sum] [--budget 40] [--report DIRECTORY] [--pair medical+math]

Each pair of medical, math, law and code is added to the base and judged by `data/prompts` of both domains, on the
half that a search has not seen. p is corrected over the pairs (Holm). Minutes a pair on one thread; with a directory
the same command resumes.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import pandas as pd

import tv
from tv.choosing.search import FOUND
from tv.stats.families import holm

DATA = Path(__file__).resolve().parent.parent / "data"
DOMAINS = ("medical", "math", "law", "code")


def main() -> None:
    """Print a row a pair and way, then what may be said of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--over", default="vectors")
    parser.add_argument("--method", default="sum")
    parser.add_argument("--budget", type=int, default=40)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--pair", action="append")
    chosen = parser.parse_args()
    pairs = [tuple(pair.split("+")) for pair in chosen.pair or ()] or list(combinations(DOMAINS, 2))
    print("| pair | way | kept, mean of both | first | second | λ |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    found = []
    for pair in pairs:
        searched = tv.search(
            DATA / "models" / "base",
            {name: DATA / "models" / name for name in pair},
            [tv.PromptSet(file=DATA / "prompts" / f"{name}.jsonl") for name in pair],
            over=chosen.over,
            method=chosen.method,
            budget=chosen.budget,
            report=chosen.report and chosen.report / f"{'-'.join(pair)}",
            batch_size=48,
        )
        scales = ", ".join(f"{value:.2f}" for value in searched.scales.scale) if len(searched.scales) < 4 else "–"
        for row in searched.table.to_dict("records"):
            both = [f"{row[name]:.3f}" for name in pair]
            told = f"{row['value']:.3f} [{row['lo']:.3f}, {row['hi']:.3f}]"
            own = scales if row["way"] == FOUND else ""
            print(f"| {' + '.join(pair)} | {row['way']} | {told} | {' | '.join(both)} | {own} |", flush=True)
        found.append(searched.table.set_index("way").loc[FOUND].rename(" + ".join(pair)))
    table = pd.DataFrame(found)
    for other in ("plain", "scaled"):
        corrected = holm(table[f"over_{other}_p"].astype(float))
        print(f"\nfound − {other} addition, p corrected over {len(table)} pairs", flush=True)
        for (name, row), p in zip(table.iterrows(), corrected, strict=True):
            gap, lo, hi = (float(row[f"over_{other}{end}"]) for end in ("", "_lo", "_hi"))
            said = "cannot tell" if not p < 0.05 else "found is better" if gap > 0 else "found is worse"
            print(f"{name}: {gap:+.3f} [{lo:+.3f}, {hi:+.3f}], p = {p:.2g}: {said}", flush=True)


if __name__ == "__main__":
    main()
