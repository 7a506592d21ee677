"""How often probes and representations claim something: `python -m benchmarks.probe_nulls`, from the project's folder.

Prints two tables: what is said of models that have learnt nothing (the base + random T of `medical`'s norms), and of
directions that were turned by hand. About seven minutes of one core; `--shams 2 --draws 4` takes two.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np

import probes
from probes.directions.labels import Label
from probes.directions.nulls import null_pair
from probes.directions.turning import turn, turn_interval, verdict
from probes.job.further import reopened
from tv.runtime.compute import Compute

DATA = Path(__file__).parent.parent / "data"
LAYERS = (1, 3, 5)
#: Draws that `probes probe` does not take for its null.
FIRST = 100
PROMPTS, D_MODEL = 144, 160


def suite(tuned: dict[str, str]) -> dict[str, object]:
    """The demo's prompts, and its base beside these models."""
    sets = [{"file": str(DATA / "prompts" / f"{name}.jsonl")} for name in ("medical", "math", "general")]
    return {
        "name": "nulls",
        "base": str(DATA / "models" / "base"),
        "tuned": tuned,
        "prompts": sets,
        "positions": "last",
        "measure": ["behaviour"],
    }


def shams(folder: Path, n: int) -> dict[str, str]:
    """n models that are the base + random T of the norms of `medical`."""
    real = probes.run(suite({"medical": str(DATA / "models" / "medical")}), out=folder / "real", stages=("capture",))
    pair, made = reopened(real, Compute()).pair("medical"), {}
    for draw in range(n):
        with null_pair(pair, "random", FIRST + draw) as both:
            both.tuned.save_pretrained(folder / f"sham-{draw}")
            both.tokenizer.save_pretrained(folder / f"sham-{draw}")
        made[f"sham-{draw}"] = str(folder / f"sham-{draw}")
    return made


def claims(folder: Path, n: int) -> list[tuple[str, int, int]]:
    """What is claimed of shams: the claim, how often, and of how many."""
    run = probes.run(suite(shams(folder, n)), out=folder / "run", stages=("capture",))
    directions = probes.probe(run, "domain", layers=LAYERS)
    probes.representations(run, layers=LAYERS, curves=False)
    rows = [(f"direction of domain: {said}", int((directions.verdict == said).sum()), len(directions)) for said in SAID]
    rows.append(("accuracy: changed", int(directions.changed.sum()), len(directions)))
    for table in ("distances", "delta_spectrum", "delta_angles"):
        rows.append((f"{table}: beyond", int(run[table].beyond.sum()), len(run[table])))
    return rows


SAID = ("same direction", "moved", "cannot tell")


def turned(draws: int) -> list[tuple[int, float, list[int]]]:
    """By degrees: the mean corrected cosine of simulated probes, and how often each verdict was given."""
    rows = []
    for degrees in (0, 15, 30, 45, 90):
        corrected, said = [], []
        for seed in range(draws):
            draw = np.random.default_rng(seed)
            axes = np.linalg.qr(draw.normal(size=(D_MODEL, 2)))[0].T
            values = (np.arange(PROMPTS) // 3 % 2).astype(np.float64)
            clusters = np.array([f"c{i // 3}" for i in range(PROMPTS)])
            label = Label("planted", values, ("no", "yes"), clusters)
            angle = math.radians(degrees)
            along = (axes[0], math.cos(angle) * axes[0] + math.sin(angle) * axes[1])
            noise = (draw.normal(size=(PROMPTS, D_MODEL)) for _ in along)
            base, tuned = (n + 3 * (2 * values - 1)[:, None] * v for n, v in zip(noise, along, strict=True))
            found = turn(base, tuned, (label, label), 100.0, seed)
            _, (lo, hi) = turn_interval(base, tuned, (label, label), 100.0, seed, found)
            corrected.append(found.corrected)
            said.append(verdict(True, lo, hi, math.nan))
        rows.append((degrees, float(np.mean(corrected)), [said.count(each) for each in SAID]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shams", type=int, default=6)
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("| said of base + random T | times | of |\n| --- | --- | --- |")
        for row in claims(Path(folder), given.shams):
            print("| " + " | ".join(map(str, row)) + " |")
    print(f"\n| turned by | cos | corrected cosine | {' | '.join(SAID)} |\n| --- | --- | --- | --- | --- | --- |")
    for degrees, corrected, said in turned(given.draws):
        counts = " | ".join(map(str, said))
        print(f"| {degrees}° | {math.cos(math.radians(degrees)):.2f} | {corrected:.2f} | {counts} |")


if __name__ == "__main__":
    main()
