"""What `tv repair` keeps and undoes on the embedded family, beside the other ways, on held-out prompts.

    python -m benchmarks.repair [--prompts 48] [--granularity component] [--pair medical:general] [--seed 0]

Prompts are drawn from all held-out phrasings of a domain; 48 are as many as `data/prompts` has. A pair is what was
tuned and what it may have damaged; without any, every tuned model of a domain stands beside general prompts, and
`medical` and `math` beside each other's. Minutes a pair on one thread.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import tv
from data import world
from data.accuracy import held_out
from tv.errors import InputError

MODELS = Path(__file__).resolve().parent.parent / "data" / "models"
PAIRS = ("medical:general", "law:general", "code:general", "math:general", "medical:math", "math:medical")


def main() -> None:
    """Print a table a pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--granularity", default="component")
    parser.add_argument("--pair", action="append")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for pair in chosen.pair or PAIRS:
        tuned, damaged = pair.split(":")
        print(f"\n## {pair}, {chosen.prompts} prompts a set, by {chosen.granularity}", flush=True)
        keep, restore = (prompts(name, chosen.prompts, chosen.seed) for name in (tuned, damaged))
        try:
            show(
                tv.repair(
                    MODELS / "base",
                    MODELS / tuned,
                    keep,
                    restore,
                    granularity=chosen.granularity,
                    seed=chosen.seed,
                    batch_size=64,
                )
            )
        except InputError as error:
            print(error, flush=True)


def prompts(domain: str, n: int, seed: int) -> list[tv.Prompt]:
    """So many held-out examples of a domain, phrasings as clusters."""
    examples = held_out(getattr(world, domain)())
    drawn = random.Random(f"repair {domain} {seed}").sample(examples, min(n, len(examples)))
    return [
        tv.Prompt(f"{domain}-{i}", domain, domain, one.text, one.target, one.foil, cluster=one.phrasing)
        for i, one in enumerate(drawn)
    ]


def show(repaired: tv.Repaired) -> None:
    """What T does, and a line a method."""
    for row in repaired.result["before"].itertuples():
        print(f"{row.set}: {row.change:.3f} [{row.lo:.3f}, {row.hi:.3f}] {row.unit}, {row.prompts} in {row.clusters}")
    print("| method | kept | undone | undone at 95 % kept | beyond plain scaling | p |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in repaired.result["chosen"].itertuples():
        kept = f"{row.kept:.3f} [{row.kept_lo:.2f}, {row.kept_hi:.2f}]"
        undone = f"{row.undone:.3f} [{row.undone_lo:.2f}, {row.undone_hi:.2f}]"
        more = f"{row.more_undone:.3f} [{row.more_undone_lo:.2f}, {row.more_undone_hi:.2f}]"
        print(f"| {row.method} | {kept} | {undone} | {row.undone_at:.3f} | {more} | {row.p:.3f} |", flush=True)
    for note in repaired.notes:
        print(f"- {note}", flush=True)


if __name__ == "__main__":
    main()
