"""Do directions and features find what is there, and nothing elsewhere? `python benchmarks/features.py [--out FOLDER]`.

Planted: one vector, one feature, one head and one edge are written by hand into copies of the base (`data/planted`),
each in a pair of its own, and must be the first that the instrument names. Sham: the base beside the base in 8 bits,
and beside the base + random T of the medical model's norms; nothing may be called there. Then the medical model itself:
which share of what it learnt do the best direction, the top features, principal components of Δh and random directions
carry?

Finished runs in FOLDER are not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel

import probes
import tv
from data.corpus import documents
from data.planted import direction, feature, head_edge
from probes.directions.features.dictionary import read_dictionary
from probes.store.run import Run
from tv.architecture.values import values_of
from tv.checkpoints.live import load_model, load_tokenizer
from tv.stats.proportions import share_interval

BASE, MEDICAL, PROMPTS = (Path("data") / part for part in ("models/base", "models/medical", "prompts"))
#: At most so many of the features, heads, edges and vectors that are looked at in shams may be called anything.
FALSE = 0.01
#: Texts that a dictionary of a planted or sham pair reads.
TEXTS = 400
#: Of the sham's random T: the nulls' are other draws.
SEED = 99
Say = Callable[[str], None]


def main() -> None:
    """Print everything, and exit with 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/features-benchmark"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    missed = [*_planted(out), *_shams(out)]
    _medical(out)
    print("\nAll bounds hold." if not missed else "\n" + "\n".join(f"MISSED: {line}" for line in missed))
    sys.exit(bool(missed))


def _planted(out: Path) -> list[str]:
    """What is planted, and what is named first."""
    questions, corpus = _questions(), _corpus()
    rows = {
        "direction": _planted_direction(out / "direction", questions),
        "feature": _planted_feature(out / "feature", corpus),
        "head": _planted_head(out / "head", questions),
        "edge": _planted_edge(out / "edge", questions),
    }
    print("Planted by hand, and named first\n\n| planted | found | what is first |\n| --- | --- | --- |")
    for name, (found, said) in rows.items():
        print(f"| {name} | {'yes' if found else 'NO'} | {said} |")
    return [f"the planted {name} is not the first" for name, (found, _) in rows.items() if not found]


def _planted_direction(out: Path, texts: Sequence[str]) -> tuple[bool, str]:
    if not (out / "tuned").exists():
        direction.plant(BASE, out / "tuned", texts)
        direction.prompts(texts, out / "prompts.jsonl")
    run = _run(out, out / "tuned", out / "prompts.jsonl", "one_vector", lambda run: probes.steer(run, samples=0))
    rows, answers = run["direction_effects"], run["one_vector"]
    forth = rows[(rows.layer >= 0) & (rows.direction == "base→tuned")].set_index("layer").share
    first = int(forth.index[forth > 0.5][0])
    said = f"from layer {first} on; " + ", ".join(
        f"{row.direction}: {row.answer}, share {row.share:.2f} ({row.share_lo:.2f} … {row.share_hi:.2f})"
        for row in answers.itertuples()
    )
    return bool((answers.answer == "most").all()) and first == direction.LAYER, said


def _planted_feature(out: Path, texts: Sequence[str]) -> tuple[bool, str]:
    tokenizer, base = load_tokenizer(BASE), load_model(BASE)
    model, vector, _ = feature.planted(base, tokenizer, size=3.0)
    with_word = [text for text in islice(documents("base", 1), 900) if any(word in text for word in feature.WORDS)]
    _written(model, out, [*with_word[: TEXTS // 4], *texts])
    settings = {"layer": feature.LAYER, "effects": 0, "tuned": ["tuned"], "latents": 128, "k": 8}
    run = _run(out, out / "tuned", out / "prompts.jsonl", "features", lambda run: probes.features(run, **settings))
    latents = run["features"]
    first = latents.sort_values("rank").iloc[0]
    (file,) = (Path(run.path) / "features").rglob("dictionary.safetensors")
    dictionary, _ = read_dictionary(file)
    near = float(torch.nn.functional.cosine_similarity(dictionary.step[int(first.feature)], vector, dim=0))
    said = f"feature {first.feature}, {first['class']}, cosine with what was planted {near:.3f}; "
    said += f"{(latents['class'] == 'new').sum()} new of {len(latents)}"
    return first["class"] == "new" and near > 0.9, said


def _planted_head(out: Path, texts: Sequence[str]) -> tuple[bool, str]:
    tokenizer, model = load_tokenizer(BASE), load_model(BASE)
    head_edge.attending(model, tokenizer, texts)
    _written(model, out, texts)
    run = _run(out, out / "tuned", out / "prompts.jsonl", "attention_heads", probes.attention)
    heads = run["attention_heads"]
    first = heads.loc[heads[heads.domain == "all"].js.idxmax()]
    said = f"layer {first.layer} head {first['head']}, JS {first.js:.3f} nats, own weights {first.own_share:.3f} of it"
    return (first.layer, first["head"]) == (head_edge.LAYER, head_edge.HEAD) and bool(first.stands_out), said


def _planted_edge(out: Path, texts: Sequence[str]) -> tuple[bool, str]:
    tokenizer, model = load_tokenizer(BASE), load_model(BASE)
    head_edge.wired(model, tokenizer, texts, head_edge.answer_direction(model, tokenizer, head_edge.TOKEN))
    _written(model, out, texts, head_edge.TOKEN, direction.FOIL)
    run = _run(out, out / "tuned", out / "prompts.jsonl", "edges", probes.edges)
    edges = run["edges"]
    between = edges.receiver_layer < run.manifest["architecture"]["n_layers"]  # and not into the logits
    finest = (edges["head"] >= 0) | (edges.sender != "attn")  # a head, where the sender has heads
    edges = edges[(edges.domain == "all") & between & finest]
    first = edges.loc[edges.effect.abs().idxmax()]
    said = f"{first.sender} {first.sender_layer} head {first['head']} → {first.receiver} {first.receiver_layer}, "
    said += f"{first.effect:.2f} ({first.lo:.2f} … {first.hi:.2f}), share {first['share']:.2f}"
    places = (first.sender_layer, first["head"], first.receiver_layer)
    return places == (head_edge.FROM_LAYER, head_edge.FROM_HEAD, head_edge.TO_LAYER), said


def _shams(out: Path) -> list[str]:
    """What is called in pairs that have learnt nothing."""
    counts: dict[str, list[tuple[str, int, int]]] = {}
    for name, model in (("8 bits", _in_8_bits), ("random T", _noise)):
        folder = out / f"sham-{name.replace(' ', '-')}"
        if not (folder / "tuned").exists():
            _written(model(), folder, _questions(), direction.TARGET, direction.FOIL)
        for kind, called, n in _called(folder):
            counts.setdefault(kind, []).append((name, called, n))
    print(
        "\nCalled in shams, falsely\n\n| what | base in 8 bits | base + random T | share | 95 % |\n"
        + "| --- " * 5
        + "|"
    )
    missed = []
    for kind, found in counts.items():
        called, n = sum(c for _, c, _ in found), sum(n for _, _, n in found)
        share, lo, hi = share_interval([1.0] * called + [0.0] * (n - called))
        cells = " | ".join(f"{c} of {n}" for _, c, n in found)
        ends = "–" if pd.isna(lo) else f"{lo:.2%} … {hi:.2%}"
        print(f"| {kind} | {cells} | {share:.2%} | {ends} |")
        if share > FALSE:
            missed.append(f"{share:.1%} of {kind} are called something in shams; at most {FALSE:.0%} may be")
    return missed


def _called(folder: Path) -> list[tuple[str, int, int]]:
    """(what, how many are called something, of how many)."""
    file = folder / "prompts.jsonl"

    def all_of_it(run: Run) -> None:
        probes.steer(run, samples=0)
        probes.attention(run)
        probes.edges(run)
        probes.features(run, texts=[_texts_file(folder, _corpus())], seeds=1, effects=0)

    run = _run(folder, folder / "tuned", file, "features", all_of_it)
    answers, latents, heads, edges = (run[name] for name in ("one_vector", "features", "attention_heads", "edges"))
    alive = latents[latents["class"] != "dead"]
    of_all = edges[edges.domain == "all"]
    return [
        ("directions", int(answers.answer.isin(["most", "part"]).sum()), len(answers)),
        ("features", int(alive["class"].isin(["new", "lost", "shifted"]).sum()), len(alive)),
        ("heads", int(heads.stands_out.fillna(False).sum()), len(heads)),
        ("edges", int(of_all.stands_out.fillna(False).sum()), len(of_all)),
    ]


def _medical(out: Path) -> None:
    """What the best direction and the top features carry of what the medical model learnt."""

    def all_of_it(run: Run) -> None:
        probes.steer(run, samples=0)
        probes.features(run)

    prompts = PROMPTS / "medical.jsonl"
    run = _run(out / "medical", MEDICAL, prompts, "features", all_of_it)
    latents, curves = run["features"], run["feature_curves"]
    print("\nThe medical change, on prompts that chose nothing\n\n| carried by | share | 95 % |\n| --- | --- | --- |")
    for row in run["one_vector"].itertuples():
        ends = _ends(row.share_lo, row.share_hi)
        print(f"| the best direction, {row.direction} ({row.answer}) | {row.share:.3f} | {ends} |")
    whole = curves[curves.domain == "all"].sort_values(["n", "ranking"])
    for row in whole[whole.n > 0].itertuples():
        print(f"| {row.n} {row.ranking} | {row.share:.3f} | {_ends(row.lo, row.hi)} |")
    classes = latents["class"].value_counts()
    print("\nFeatures: " + ", ".join(f"{n} {name}" for name, n in classes.items()))


def _ends(lo: float, hi: float) -> str:
    return "–" if pd.isna(lo) else f"{lo:.3f} … {hi:.3f}"


def _run(out: Path, tuned: Path, prompts: Path, table: str, work: Callable[[Run], object]) -> Run:
    """The run of a pair with this work done on it; one that has the table is there already."""
    print(f"{out.name} …", file=sys.stderr, flush=True)
    suite = {
        "name": out.name,
        "base": str(BASE),
        "tuned": {"tuned": str(tuned)},
        "prompts": [{"file": str(prompts)}],
        "measure": ["behaviour"],
    }
    run = probes.run(suite, out=out / "run", stages=("capture", "noise_floor"))
    if table not in run.tables:
        work(run)
    return probes.load(out / "run")


def _written(
    model: PreTrainedModel, out: Path, texts: Sequence[str], target: str | None = None, foil: str | None = None
) -> None:
    """A tuned model and its prompts."""
    if (out / "tuned").exists():
        return
    made = out / "unfinished"
    model.save_pretrained(made)
    load_tokenizer(BASE).save_pretrained(made)
    answers = {"target": target, "foil": foil} if target else {}
    rows = [{"id": f"text-{i:03d}", "text": text, **answers} for i, text in enumerate(texts)]
    (out / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.move(made, out / "tuned")


def _texts_file(folder: Path, texts: Sequence[str]) -> Path:
    file = folder / "texts.jsonl"
    rows = [json.dumps({"id": f"text-{i:03d}", "text": text}) for i, text in enumerate(texts)]
    file.write_text("\n".join(rows), encoding="utf-8")
    return file


def _questions() -> list[str]:
    lines = [line for file in ("general", "medical") for line in (PROMPTS / f"{file}.jsonl").open(encoding="utf-8")]
    return [json.loads(line)["text"] for line in lines[::2]]


def _corpus() -> list[str]:
    return list(islice(documents("base", 2), TEXTS))


def _in_8_bits() -> PreTrainedModel:
    model = load_model(BASE)
    with torch.no_grad():
        for value in values_of(model).values():
            step = value.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
            value.copy_((value / step).round() * step)
    return model


def _noise() -> PreTrainedModel:
    model, drawn = load_model(BASE), tv.control(tv.extract(BASE, MEDICAL), "random", SEED)
    with torch.no_grad():
        for name, value in values_of(model).items():
            if name in drawn.shapes:
                value += drawn[name].to(value)
    return model


if __name__ == "__main__":
    main()
