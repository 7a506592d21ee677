"""Attention patterns: which heads changed beyond the nulls, by their own weights or by their input, and where to."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probes.directions.attention_shown import TOKENS
from probes.reporting.chapter import Chapter, panel
from probes.reporting.figures import heatmap, reach, token_map
from probes.reporting.panel import Figure, Panel, Table
from probes.reporting.words import estimate, number, percent, prompts_of, q_value
from probes.store.schemas import ALL_DOMAINS

#: Heads, and pairs of tokens of each, in the lists.
HEADS, PAIRS = 20, 3


@panel("directions", order=50, needs=["attention_heads"])
def attention(chapter: Chapter) -> Iterator[Panel]:
    """Every head's divergence over that of random T, its own weights' share, and the pairs that changed most."""
    rows = chapter.rows("attention_heads")
    if rows.empty:
        return
    n_layers = int(chapter.run.manifest.get("architecture", {}).get("n_layers", rows.layer.max() + 1))
    rows = rows.assign(head_name=rows["head"].astype(str), beyond=rows.js / rows.js_random)
    order = [str(i) for i in sorted(rows["head"].unique())]
    domains = list(dict.fromkeys(rows.domain.astype(str)))
    parts = [rows[rows.domain == domain] for domain in domains]
    divergence = [
        heatmap(
            part,
            "beyond",
            "head_name",
            order,
            n_layers,
            reach=reach(part.beyond),
            ratio=True,
            marked="stands_out",
            hover=["js", "js_random", "js_floor", "q"],
            axis="head",
        )
        for part in parts
    ]
    shares = [
        heatmap(
            part, "own_share", "head_name", order, n_layers, reach=1.0, hover=["own_share_random", "js"], axis="head"
        )
        for part in parts
    ]
    draws = int(rows.draws.max())
    over = rows[rows.domain == domains[0]]
    note = (
        "Left: the mean Jensen–Shannon divergence of both models' attention patterns, over what random T of T's norms "
        f"gives the head (geometric mean of {draws} draws). A star: q below 0.05 against one more random T, and the "
        "interval lies above what another precision of the base does. Right: how much of the divergence the head's own "
        "weights make; the rest comes with its input. How it misleads: almost any tuning moves patterns "
        "more than random T of its size, so most heads may have a star; read the order, not the number of stars. "
        "A pattern can change without "
        "any effect on the output, where the values it moves between are alike. "
        f"{int(over.stands_out.sum())} of {len(over)} heads have a star over all prompts."
    )
    yield Panel(
        "Which heads attend elsewhere?",
        note,
        [
            Figure("attention-js", "Divergence over random T", divergence),
            Figure("attention-own", "Own weights", shares),
        ],
        list(map(prompts_of, domains)),
        "prompts",
        tables=[_heads(over), *_pairs(chapter, over)],
    )


@panel("directions", order=51, needs=["attention_patterns", "attention_heads"])
def patterns(chapter: Chapter) -> Iterator[Panel]:
    """Both models' weights of a head on a prompt, query by key, and their difference."""
    rows = chapter.rows("attention_patterns")
    if rows.empty:
        return
    rows = rows.assign(name=[_name(row) for row in rows[["layer", "component", "head"]].to_dict("records")])
    difference = rows.weight_tuned - rows.weight_base
    rows, far = rows.assign(difference=difference), float(difference.abs().max())
    ranked = chapter.rows("attention_heads", where=[("domain", "==", ALL_DOMAINS)]).sort_values("js", ascending=False)
    there = set(rows.name)
    heads = [name for name in map(_name, ranked.to_dict("records")) if name in there]
    prompts = list(dict.fromkeys(rows.prompt_id.astype(str)))
    by_both = dict(list(rows.groupby(["name", rows.prompt_id.astype(str)])))
    chosen = [by_both[head, prompt] for head in heads for prompt in prompts]
    maps = [
        ("base", "weight_base", None, 1.0),
        ("tuned", "weight_tuned", None, 1.0),
        ("difference", "difference", 0.0, far),
    ]
    note = (
        "A row is a query, a column a key that it sees; the weights of a row sum to 1. Shown are the "
        f"{len(heads)} heads with the largest divergence over all prompts, on the {len(prompts)} prompts on which they "
        f"diverge most, at most {TOKENS} tokens each. These are the most extreme cases; the maps above show every head."
    )
    titles = {"base": "base", "tuned": chapter.evidence.tuned, "difference": f"{chapter.evidence.tuned} − base"}
    yield Panel(
        "Attention patterns of a head",
        note,
        [
            Figure(f"pattern-{side}", titles[side], [token_map(part, column, centre, top) for part in chosen])
            for side, column, centre, top in maps
        ],
        heads,
        "head",
        prompts,
        "prompt",
    )


def _heads(rows: pd.DataFrame) -> Table:
    cells = [
        (
            _name(row),
            estimate(row["js"], row["js_lo"], row["js_hi"]),
            number(row["js_random"]),
            number(row["js_random_most"]),
            number(row["js_floor"]),
            q_value(row["q"]),
            estimate(row["own_share"], row["own_share_lo"], row["own_share_hi"], percent),
            percent(row["own_share_random"]),
            percent(row["score_own"]),
            percent(row["score_inherited"]),
            f"{percent(row['first_base'])} → {percent(row['first_tuned'])}",
        )
        for row in rows.nlargest(HEADS, "js").to_dict("records")
    ]
    columns = (
        "head",
        "JS, nats",
        "random T",
        "largest random T",
        "rounding",
        "q",
        "own weights' share",
        "share, random T",
        "scores: own",
        "scores: inherited",
        "weight on the first token",
    )
    return Table("attention-heads", "The heads that diverge most", columns, cells)


def _pairs(chapter: Chapter, rows: pd.DataFrame) -> Iterator[Table]:
    pairs = chapter.rows("attention_pairs")
    if pairs.empty:
        return
    ranked = {_name(row): i for i, row in enumerate(rows.nlargest(HEADS, "js").to_dict("records"))}
    pairs = pairs[pairs["rank"] <= PAIRS].assign(
        name=[_name(row) for row in pairs[pairs["rank"] <= PAIRS].to_dict("records")]
    )
    pairs = pairs[pairs.name.isin(ranked)].assign(order=pairs.name.map(ranked)).sort_values(["order", "rank"])
    cells = [
        (
            str(row["name"]),
            str(row["prompt_id"]),
            f"{row['query']!r} at {row['query_pos']}",
            "nothing (sink)" if row["key_pos"] < 0 else f"{row['key']!r} at {row['key_pos']}",
            percent(row["weight_base"]),
            percent(row["weight_tuned"]),
            percent(row["weight_own"]),
        )
        for row in pairs.to_dict("records")
    ]
    columns = ("head", "prompt", "query", "key", "base", "tuned", "own weights alone")
    yield Table("attention-pairs", "Where the weight went, in the heads that stand out", columns, cells)


def _name(row: dict[str, object]) -> str:
    named = "" if row["component"] == "attn" else f" {row['component']}"
    return f"layer {row['layer']}{named} head {row['head']}"
