"""Does any method merge two vectors better than plain addition? All pairs of the embedded models, all methods.

    python -m benchmarks.composition [--chosen]

For each of the six pairs of {medical, math, law, code} and each method with its defaults, base + both vectors at λ = 1
is asked the prompts of both domains. The change against `sum` is that of the target's NLL a token and of exact match,
paired prompt by prompt, with 95 % intervals whose draws are clusters (phrasings), and p corrected by Holm over all
pairs and methods. `--chosen` gives every method, the sum too, the common λ of a grid at which the worse of the two
domains has the lowest NLL on half of the clusters, and compares on the other half: for methods that shrink T, λ = 1 is
no fair scale.
One minute of CPU time on one thread, three with --chosen.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

import tv
from tv.checkpoints.live import load_model, load_tokenizer
from tv.prompts.behaviour import batched, behaviour
from tv.prompts.files import PromptSet, read_prompts
from tv.stats.families import holm
from tv.stats.means import mean_interval
from tv.stats.proportions import mcnemar_p, share_change

DATA = Path(__file__).resolve().parent.parent / "data"
DOMAINS = ("medical", "math", "law", "code")
GRID = (0.5, 0.75, 1.0, 1.5, 2.5)
NLL, EXACT = "target_nll_per_token", "exact_match"


class Questions:
    """The prompts of all domains, and what a model answers to those of some."""

    def __init__(self) -> None:
        prompts = read_prompts([PromptSet(file=DATA / "prompts" / f"{domain}.jsonl") for domain in DOMAINS])
        self.prompts, self.tokenizer = prompts, load_tokenizer(DATA / "models" / "base")
        clusters = sorted({str(prompt.cluster) for prompt in prompts})
        random.Random(0).shuffle(clusters)
        self.chosen_on = set(clusters[::2])

    def asked(self, model: PreTrainedModel, domains: Sequence[str]) -> pd.DataFrame:
        """`domain cluster` and both metrics of every prompt."""
        batches = batched([one for one in self.prompts if one.domain in domains], model, self.tokenizer, 48)
        values, asked = behaviour(model, batches), [item.prompt for batch in batches for item in batch.encoded]
        who = [{"domain": prompt.domain, "cluster": str(prompt.cluster)} for prompt in asked]
        return pd.DataFrame(who).assign(**{name: values[name] for name in (NLL, EXACT)})


def main() -> None:
    """Print a table a metric: methods by pairs; and how many of them beat the sum, or lose to it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--chosen", action="store_true", help="a common λ for each method, chosen on half of the prompts"
    )
    parser.add_argument("-o", "--output", type=Path, help="all rows, as CSV")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, questions = load_model(DATA / "models" / "base"), Questions()
    vectors = {name: tv.extract(DATA / "models" / "base", DATA / "models" / name) for name in DOMAINS}
    rows = []
    for pair in combinations(DOMAINS, 2):
        own = [vectors[name] for name in pair]
        found = {method: scored(model, own, pair, method, questions, given.chosen) for method in tv.METHODS}
        reference = found["sum"][1]
        for method, (scale, asked) in found.items():
            rows.append({"pair": " + ".join(pair), "method": method, "λ": scale, **compared(reference, asked)})
        print(f"{' + '.join(pair)}: done", flush=True)
    frame = pd.DataFrame(rows)
    other = frame.method != "sum"
    for metric in ("nll", "exact"):
        frame.loc[other, f"{metric}_holm"] = holm(frame.loc[other, f"{metric}_p"])
    tell(frame)
    if given.output is not None:
        frame.to_csv(given.output, index=False)


def scored(
    model: PreTrainedModel,
    vectors: Sequence[tv.TuningVector],
    pair: Sequence[str],
    method: str,
    questions: Questions,
    chosen: bool,
) -> tuple[float, pd.DataFrame]:
    """(λ, what the merged model answers): to all prompts, or with `chosen` to those that chose no λ."""
    with tv.Mover(model, list(vectors), method=method) as mover:

        def at(scale: float) -> pd.DataFrame:
            mover.to(dict.fromkeys(vectors, scale))
            return questions.asked(model, pair)

        if not chosen:
            return 1.0, at(1.0)
        tried = {scale: at(scale) for scale in GRID}
        seen = {scale: asked[asked.cluster.isin(questions.chosen_on)] for scale, asked in tried.items()}
        best = min(GRID, key=lambda scale: float(seen[scale].groupby("domain")[NLL].mean().max()))
        asked = tried[best]
        return best, asked[~asked.cluster.isin(questions.chosen_on)]


def compared(reference: pd.DataFrame, asked: pd.DataFrame) -> dict[str, float]:
    """Both metrics of a merge, and their paired change against the sum's."""
    clusters = asked.cluster.tolist()
    change = mean_interval((asked[NLL] - reference[NLL]).to_numpy(), clusters)
    exact, lo, hi = share_change(reference[EXACT], asked[EXACT], clusters)
    return {
        "nll": float(asked[NLL].mean()),
        "nll_change": float(change.mean),
        "nll_lo": float(change.lo),
        "nll_hi": float(change.hi),
        "nll_p": float(change.p),
        "exact": float(asked[EXACT].mean()),
        "exact_change": exact,
        "exact_lo": lo,
        "exact_hi": hi,
        "exact_p": mcnemar_p(reference[EXACT], asked[EXACT], clusters),
        "n": len(asked),
        "clusters": len(set(clusters)),
    }


def tell(frame: pd.DataFrame) -> None:
    """The tables, and a line a method."""
    for metric, words in (("nll", "NLL a token, nats"), ("exact", "exact match")):
        print(f"\n{words}: the sum's value, then each method's change against it [95 % interval], * if p (Holm) < 0.05")
        for pair, rows in frame.groupby("pair", sort=False):
            n, clusters = int(rows.n.iloc[0]), int(rows.clusters.iloc[0])
            print(f"{pair} ({n} prompts, {clusters} clusters)")
            for row in rows.to_dict("records"):
                if row["method"] == "sum":
                    print(f"  {'sum':14} λ {row['λ']:<4g} {row[metric]:.3f}")
                    continue
                star = "*" if row[f"{metric}_holm"] < 0.05 else ""
                ends = f"[{row[f'{metric}_lo']:+.3f}, {row[f'{metric}_hi']:+.3f}]"
                print(f"  {row['method']:14} λ {row['λ']:<4g} {row[f'{metric}_change']:+.3f} {ends} {star}")
    better = {"nll": -1, "exact": 1}
    print("\nmethod: pairs of six in which it is better / worse than the sum beyond chance; mean change over pairs")
    for method, rows in frame[frame.method != "sum"].groupby("method", sort=False):
        said = []
        for metric, sign in better.items():
            clear = rows[rows[f"{metric}_holm"] < 0.05]
            up = int((np.sign(clear[f"{metric}_change"]) == sign).sum())
            said.append(f"{metric} {up} / {len(clear) - up}, {rows[f'{metric}_change'].mean():+.3f}")
        print(f"  {method:14} {';  '.join(said)}")


if __name__ == "__main__":
    main()
