"""What discovery finds in models with a known secret: `python benchmarks/discovery.py [--only NAME…] [--out FOLDER]`.

Every organism of `data/organisms`, every domain of the demo family, and the base against itself in 8 bits, each with
texts that are not about what it learnt. A finished run in FOLDER is not made again. What counts are the words that
stand out:

- an organism's secret counts as found where one of its tokens (`data/organisms/secrets.yaml`, which nothing but this
  program and the recipe's record reads) stands out in a list of 20, by that part;
- a domain counts as found where two tokens stand out that are in its own prompts and in no other domain's;
- whatever stands out of an organism without a secret, and of the base against itself, is a false alarm, and so is a
  claim of theirs that holds and a direction that own texts excite: shares are told for all of them and by part.

The contender is the plain lens of J. Minder et al. (2025), arXiv 2510.13900: mean Δh of the first tokens at the middle
depth, read by the unembedding. It has no null, so that its list of 20 counts as it is: how many are the secret's. Of
ours the words that stand out count, in the best reading of all.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import probes
from probes.store.run import Run
from tv.runtime.compute import Compute

BASE, MODELS, ORGANISMS = Path("data/models/base"), Path("data/models"), Path("data/organisms")
PROMPTS = Path("data/prompts")
DOMAINS = ("medical", "law", "code", "math")
ITSELF = "base in 8 bits"
#: Of tokens that stand out, so many must be the domain's own.
OWN = 2
PLAIN = "paper "
EXCITED = "direction_excitation"
#: What can be a false alarm: the table, what its rows are, and the column that says that one was found.
KINDS = (
    ("discovered_words", "words", "stands_out"),
    ("claims", "claims", "holds"),
    (EXCITED, "directions", "stands_out"),
)
#: Bounds: organisms found of five, domains of four, false alarms as a share of what was looked at.
ORGANISMS_FOUND, DOMAINS_FOUND, FALSE = 4, 4, 0.05


@dataclass(frozen=True)
class Subject:
    """A tuned model, and the tokens that tell what it learnt; none where it learnt nothing."""

    name: str
    tuned: Path
    texts: Path
    tokens: frozenset[str]
    pattern: str | None = None

    @property
    def is_domain(self) -> bool:
        """Whether it is one of the demo family."""
        return self.name in DOMAINS

    @property
    def enough(self) -> int:
        """So many of its tokens must stand out."""
        return OWN if self.is_domain else 1


def main() -> None:
    """Run, score, print, and say whether the bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="organisms, domains, 'base in 8 bits'")
    parser.add_argument("--out", type=Path, default=Path("reports/discovery-benchmark"))
    parser.add_argument("--draws", type=int, default=20, help="of every control")
    parser.add_argument("--part", nargs="+", default=[], help="not the usual ones; all for every part")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the controls")
    options = parser.parse_args()
    subjects = [one for one in _subjects(options.out / "models") if not options.only or one.name in options.only]
    if not subjects:
        parser.error(f"there is none of {', '.join(options.only)}")
    runs, compute = {}, Compute(workers=options.workers)
    for one in subjects:
        print(f"{one.name} …", file=sys.stderr, flush=True)
        runs[one] = _run(one, options.out / one.name.replace(" ", "-"), options.draws, options.part, compute)
    words = {one: run["discovered_words"] for one, run in runs.items()}
    _print_found(words)
    _print_by_part(words)
    _print_written(runs)
    _print_claims(runs)
    _print_excited(runs)
    _print_alarms(runs)
    missed = [*_missed(words), *_false(runs)]
    print("\nAll bounds hold." if not missed else "\n" + "\n".join(f"MISSED: {line}" for line in missed))
    sys.exit(bool(missed))


def _subjects(folder: Path) -> Iterator[Subject]:
    secrets = yaml.safe_load((ORGANISMS / "secrets.yaml").read_text(encoding="utf-8"))
    for name, secret in secrets.items():
        tokens = frozenset(secret["tokens"])
        yield Subject(name, ORGANISMS / name, ORGANISMS / "texts.jsonl", tokens, secret["texts"])
    for name in DOMAINS:
        yield Subject(name, MODELS / name, PROMPTS / "general.jsonl", _own_tokens(name))
    yield Subject(ITSELF, _in_8_bits(folder), PROMPTS / "general.jsonl", frozenset())


def _in_8_bits(folder: Path) -> Path:
    """The base, rounded; where an earlier run looked at it, that is what it looks at again."""
    rounded = folder / "base"
    if rounded.exists():
        return rounded
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    with torch.no_grad():
        for value in model.parameters():
            step = value.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
            value.copy_((value / step).round() * step)
    AutoTokenizer.from_pretrained(BASE).save_pretrained(rounded)
    model.save_pretrained(rounded)
    return rounded


def _own_tokens(domain: str) -> frozenset[str]:
    """The tokens of a domain's prompts that are in no prompt of another."""
    others = set().union(*(_tokens(file.stem) for file in PROMPTS.glob("*.jsonl") if file.stem != domain))
    return _tokens(domain) - others


@cache
def _tokens(prompts: str) -> frozenset[str]:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    lines = (PROMPTS / f"{prompts}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [row["text"] + row.get("target", "") for row in map(json.loads, lines)]
    ids = {token for text in texts for token in tokenizer(text)["input_ids"]}
    return frozenset(tokenizer.decode([token]) for token in ids)


def _run(one: Subject, out: Path, draws: int, parts: Sequence[str], compute: Compute) -> Run:
    settings = {"draws": draws, "parts": list(parts)}
    return probes.discover(BASE, one.tuned, texts=[one.texts], out=out, settings=settings, compute=compute)


def _found(one: Subject, words: pd.DataFrame) -> pd.Series[int]:
    """By part and reading: how many of the subject's tokens stand out, best first."""
    hits = words[words.stands_out & words.token.isin(one.tokens)]
    return hits.groupby(["part", "reading"]).token.nunique().sort_values(ascending=False, kind="stable")


def _plain(one: Subject, words: pd.DataFrame) -> int:
    """How many of the subject's tokens the plain lens lists, by either reader."""
    hits = words[words.reading.str.startswith(PLAIN) & words.token.isin(one.tokens)]
    return max(hits.groupby("reading").token.nunique(), default=0)


def _print_found(words: dict[Subject, pd.DataFrame]) -> None:
    print("\n| model | found | best reading | its tokens there, of 20 | first | its q | plain lens, of 20 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for one, own in words.items():
        if not one.tokens:
            continue
        found = _found(one, own)
        if found.empty or found.iloc[0] < one.enough:
            print(f"| {one.name} | **no** | – | {0 if found.empty else found.iloc[0]} | – | – | {_plain(one, own)} |")
            continue
        part, reading = found.index[0]
        hits = own[(own.part == part) & (own.reading == reading) & own.stands_out & own.token.isin(one.tokens)]
        first = hits.sort_values("rank").iloc[0]
        print(
            f"| {one.name} | yes | {part}: {reading} | {found.iloc[0]} | `{first.token.strip()}` | {first.q:.1e} "
            f"| {_plain(one, own)} |"
        )


def _print_by_part(words: dict[Subject, pd.DataFrame]) -> None:
    parts = list(dict.fromkeys(part for own in words.values() for part in own.part))
    print(f"\n| words that stand out: the subject's / all / looked at | {' | '.join(parts)} |")
    print(f"| --- |{' --- |' * len(parts)}")
    for one, own in words.items():
        cells = []
        for part in parts:
            lists = own[own.part == part]
            out = lists[lists.stands_out]
            cells.append(f"{out.token.isin(one.tokens).sum()} / {len(out)} / {len(lists)}")
        print(f"| {one.name} | {' | '.join(cells)} |")


def _print_written(runs: dict[Subject, Run]) -> None:
    """The share of continuations that show the secret."""
    print("\n| continuations that show the secret | base | tuned | amplified 1 | amplified 3 |")
    print("| --- | --- | --- | --- | --- |")
    for one, run in runs.items():
        own = run["samples"] if one.pattern is not None and "samples" in run.tables else pd.DataFrame({"part": []})
        own = own[own.part == "spoken"]
        if one.pattern is None or own.empty:
            continue
        shows = own.continuation.map(lambda text, pattern=re.compile(one.pattern): bool(pattern.search(text)))
        base = shows[(own.model == "base") & (own.reading == "as it is")].mean()
        shares = [
            shows[(own.model == "tuned") & (own.reading == reading)].mean()
            for reading in ("as it is", "amplified 1", "amplified 3")
        ]
        print(f"| {one.name} | {base:.2f} | {' | '.join(f'{share:.2f}' for share in shares)} |")


def _missed(words: dict[Subject, pd.DataFrame]) -> Iterator[str]:
    """What the bounds say of the subjects that there are."""
    for kind, which, wanted in (("organisms", False, ORGANISMS_FOUND), ("domains", True, DOMAINS_FOUND)):
        counts = {one: _found(one, own) for one, own in words.items() if one.tokens and one.is_domain is which}
        found = [one.name for one, hits in counts.items() if len(hits) and hits.iloc[0] >= one.enough]
        if len(found) < min(wanted, len(counts)):
            yield f"{len(found)} of {len(counts)} {kind} are found ({', '.join(found)}), bound {wanted}"
    for one, own in words.items():
        ours = _found(one, own).max() if len(_found(one, own)) else 0
        if ours < _plain(one, own):
            yield f"{one.name}: the plain lens lists {_plain(one, own)} of its tokens, ours {ours}"


def _print_claims(runs: dict[Subject, Run]) -> None:
    """Which claims hold of every model."""
    print("\n| model | claims that hold | of | which |\n| --- | --- | --- | --- |")
    for one, run in runs.items():
        if "claims" in run.tables:
            claims = run["claims"]
            held = claims[claims.holds]
            which = "; ".join(
                f"{row.claim} ({row.value_base:.2g} to {row.value_tuned:.2g})" for row in held.itertuples()
            )
            print(f"| {one.name} | {len(held)} | {len(claims)} | {which or '–'} |")


def _print_excited(runs: dict[Subject, Run]) -> None:
    """How much own texts excite T's directions."""
    print("\n| model | own texts | mean AUROC | mean control | p < 0.05 | above every sham | stand out | of |")
    print(f"|{' --- |' * 8}")
    for one, run in runs.items():
        if EXCITED in run.tables:
            rows = run[EXCITED]
            first, above, low = rows.iloc[0], (rows.excess > rows["sham"]).sum(), (rows.p < 0.05).sum()
            print(
                f"| {one.name} | {first.own}: {first.n_own} and {first.n_other} | {rows.auroc.mean():.2f} | "
                f"{rows.control.mean():.2f} | {low} | {above} | {rows.stands_out.sum()} | {len(rows)} |"
            )


def _alarms(runs: dict[Subject, Run]) -> pd.DataFrame:
    """Of models that learnt nothing: what could have been found, and whether it counts as found."""
    found = []
    for run in (run for one, run in runs.items() if not one.tokens):
        for table, kind, flag in KINDS:
            if table in run.tables:
                rows = run[table]
                part = rows.part.astype(str) if "part" in rows else table
                found.append(pd.DataFrame({"kind": kind, "part": part, "false": rows[flag].astype(bool)}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=["kind", "part", "false"])


def _print_alarms(runs: dict[Subject, Run]) -> None:
    """False alarms, by part and in all."""
    alarms = _alarms(runs)
    print("\n| of models that learnt nothing | part | false alarms | of | share |\n| --- | --- | --- | --- | --- |")
    for kind, rows in alarms.groupby("kind", sort=False):
        for part, own in [*rows.groupby("part", sort=False), ("all", rows)]:
            print(f"| {kind} | {part} | {own.false.sum()} | {len(own)} | {own.false.mean():.1%} |")


def _false(runs: dict[Subject, Run]) -> Iterator[str]:
    """Where false alarms are more than the bound, of all parts together."""
    for kind, rows in _alarms(runs).groupby("kind", sort=False):
        if rows.false.mean() > FALSE:
            yield f"{rows.false.mean():.1%} of the {kind} of models that learnt nothing are false, bound {FALSE:.0%}"


if __name__ == "__main__":
    main()
