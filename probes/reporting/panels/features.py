"""Sparse features: how good the dictionaries are, how much the leading features carry, and a browser of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from probes.attribution.effects import BACKWARD, FORWARD
from probes.reporting.causes import domains_in
from probes.reporting.chapter import Chapter, panel
from probes.reporting.charts import COLOURS
from probes.reporting.figures import Plot, layout, plain, plains
from probes.reporting.page import part
from probes.reporting.panel import Figure, Panel, Table
from probes.reporting.words import effect_metric_name, estimate, number, prompts_of, q_value
from probes.store.schemas import ALL_DOMAINS

#: Features in the browser, and domains of each whose firing rates are told.
_SHOWN, _DOMAINS = 40, 8
_SIDES = {"real": "the pair", "rounded": "base in another precision", "random": "base + random T"}
_WAYS = {FORWARD: "added to the base", BACKWARD: "taken from the tuned model"}
_MOVED = ("new", "lost", "shifted")
_TONES = {"new": "gained", "lost": "lost", "shifted": "caution"}


@panel("directions", order=40, needs=["features", "dictionaries"])
def features(chapter: Chapter) -> Iterator[Panel]:
    """The dictionaries beside their nulls, the browser, and what the leading features carry together."""
    latents = chapter.rows("features")
    if latents.empty:
        return
    first = latents.iloc[0]
    counts = latents["class"].value_counts()
    found = ", ".join(f"{counts.get(name, 0)} {name}" for name in (*_MOVED, "shared", "dead"))
    note = (
        f"A dictionary ({first.form}) of {first.site} of layer {first.layer}: {found}. A latent is new, lost or "
        "shifted where its part in Δh, relative to the state (“change”), is more than 1.5 times that of any latent of "
        "the same training on base against base in another precision and on base against base + random T (of the "
        "tuned model's norms): the first says what rounding does, the second what any vector of this size does. "
        "“Called” is the share of latents beyond these thresholds; of a null that did not set them it is the false "
        "rate. A dictionary splits and merges: one feature may be several latents, and a shared latent whose "
        "direction turned looks shifted. FVU, the fraction of variance unexplained, is of held-out texts, beside a "
        "PCA of k components, which are dense and of which k are used everywhere. Open a feature: a stronger colour is "
        "a larger activation; words are what its decoder row reads as through the final norm, which need not be what "
        "it does."
    )
    tables = [_dictionaries(chapter)]
    yield Panel(
        "Sparse features: what is new, lost or shifted?",
        note,
        [],
        tables=tables,
        wide=True,
        below=part("features.html", features=_browsed(chapter, latents)),
    )


@panel("directions", order=41, needs=["feature_curves"])
def feature_curves(chapter: Chapter) -> Iterator[Panel]:
    """The share of the change that the first n features carry, beside principal components and random directions."""
    rows = chapter.rows("feature_curves")
    if rows.empty:
        return
    domains = domains_in(rows, chapter.evidence.effects, chapter.evidence.behaviour)
    metric = effect_metric_name(str(rows.metric.iloc[0]))
    note = (
        f"How much of the whole change of the {metric} the base makes when what the leading n write into Δh is added "
        "at this one site. They are chosen on one half of the prompts, clusters whole, and read on the other. n = 0 is "
        "the mean of Δh alone. Principal components are dense: one of them does at every token what a feature does at "
        "few. The dotted line is all of Δh at this site; what it lacks, later layers do. Bars are 95 % intervals. "
        "Where behaviour hardly changed, shares mean nothing."
    )
    plots = [_curve(rows[rows.domain == domain]) for domain in domains]
    figure = Figure("feature-curves", "Share of the change that the leading n carry", plots)
    yield Panel(
        "How many features is the change?", note, [figure], list(map(prompts_of, domains)), "prompts", wide=True
    )


def _curve(rows: pd.DataFrame) -> Plot:
    traces: list[dict[str, Any]] = []
    ns = sorted(int(n) for n in rows[rows.ranking != "all of Δh"].n.unique())
    for i, (ranking, own) in enumerate(rows.groupby("ranking", sort=True)):
        if ranking == "all of Δh":
            level = plain(float(own.share.iloc[0]))
            dotted = {"dash": "dot", "color": "#888"}
            line = {"x": [str(n) for n in ns], "y": [level] * len(ns), "line": dotted, "mode": "lines"}
            traces.append({"type": "scatter", "name": str(ranking), **line})
            continue
        own = own.sort_values("n")
        ends = {
            "type": "data",
            "symmetric": False,
            "array": [plain(value) or 0.0 for value in (own.hi - own.share).astype(float)],
            "arrayminus": [plain(value) or 0.0 for value in (own.share - own.lo).astype(float)],
            "thickness": 1,
        }
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": str(ranking),
                "x": [str(n) for n in own.n],
                "y": plains(own.share),
                "error_y": ends,
                "line": {"color": COLOURS[i % len(COLOURS)]},
                "marker": {"symbol": i % 6, "size": 7},
                "hovertemplate": "%{x}: %{y:.3g}",
            }
        )
    axis = {"type": "category"}
    return {
        "data": traces,
        "layout": layout(x="n moved together", y="share of the change", height=340, legend=True, xaxis=axis),
    }


def _dictionaries(chapter: Chapter) -> Table:
    rows = chapter.rows("dictionaries")
    columns = [
        *("pair", "seed", "FVU base (PCA)", "FVU tuned (PCA)", "FVU Δh (PCA)", "L0", "dead", "stability"),
        *("largest change", "least cosine", "called"),
    ]
    lines = [
        [
            _SIDES.get(row["side"], row["side"]),
            str(row["seed"]),
            *(f"{number(row[f'fvu_{of}'])} ({number(row[f'pca_{of}'])})" for of in ("base", "tuned", "delta")),
            number(row["l0"]),
            f"{row['dead']:.1%}",
            number(row["stability"]),
            number(row["change_largest"]),
            number(row["cosine_least"]),
            f"{row['called']:.1%}" if pd.notna(row["called"]) else "sets thresholds",
        ]
        for row in rows.to_dict("records")
    ]
    return Table("dictionaries", "Dictionaries of the pair and of its nulls", columns, lines)


def _browsed(chapter: Chapter, latents: pd.DataFrame) -> list[dict[str, Any]]:
    """The leading features, each with what is known of it, as text."""
    leading = latents[latents["class"] != "dead"].sort_values("rank")
    effects = chapter.rows("effects", where=[("method", "==", "feature")])
    first = leading.iloc[0] if len(leading) else None
    if first is not None:
        effects = effects[(effects.layer == first.layer) & (effects.component == first.site)]
    moved = set(effects.neuron.astype(int)) if len(effects) else set()
    half = leading.head(_SHOWN - min(len(moved), _SHOWN // 2))
    chosen = pd.concat([half, leading[leading.feature.isin(moved)]]).drop_duplicates("feature").head(_SHOWN)
    where = [("feature", "in", chosen.feature.astype(int).tolist())]
    words, texts, rates = (
        chapter.rows(name, where=where) for name in ("feature_words", "feature_texts", "feature_rates")
    )
    return [_one(row, words, texts, rates, effects) for row in chosen.to_dict("records")]


def _one(row: dict[Any, Any], *tables: pd.DataFrame) -> dict[str, Any]:
    words, texts, rates, effects = (
        table[table["neuron" if "neuron" in table else "feature"] == row["feature"]] for table in tables
    )
    named = {name: own.sort_values("word_rank").token.tolist() for name, own in words.groupby("row", sort=False)}
    known = {
        "‖d_base‖, ‖d_tuned‖": f"{number(row['norm_base'])}, {number(row['norm_tuned'])}",
        "cosine": f"{number(row['cosine'])} (nulls at least {number(row['cosine_null'])})",
        **{
            f"share that {model} has of it (ν, in the error and in what is written)": ", ".join(
                number(row[f"nu_{of}_{model}"]) for of in ("error", "written")
            )
            for model in ("base", "tuned")
        },
        "share of ‖Δh‖²": number(row["energy"]),
        "cosine with its partner of another seed": number(row["found_again"]),
    }
    told = rates[rates.domain != ALL_DOMAINS].head(_DOMAINS)
    return {
        "name": f"feature {row['feature']}",
        "kind": row["class"],
        "tone": _TONES.get(row["class"], "soft"),
        "change": number(row["change"]),
        "change_null": number(row["change_null"]),
        "rate": f"{row['rate_tuned']:.2%} of tokens",
        "words": " ".join(map(_shown, named.get("change", named.get("tuned", []))[:4])),
        "numbers": "; ".join(f"{name}: {value}" for name, value in known.items()),
        "rates": "Fires, of a prompt's tokens: "
        + "; ".join(
            f"{rate.domain} {rate.rate_tuned:.2%} [{rate.rate_tuned_lo:.2%}, {rate.rate_tuned_hi:.2%}]"
            for rate in told.itertuples()
        )
        if len(told)
        else "",
        "rows": [{"of": _ROWS.get(str(of), str(of)), "words": list(map(_shown, each))} for of, each in named.items()],
        "texts": [_text(own) for _, own in texts.groupby("text_rank")],
        "effects": list(_effects(effects)),
        "effects_on": f"effect on the {effect_metric_name(str(effects.metric.iloc[0]))}" if len(effects) else "",
    }


_ROWS = {"base": "d_base reads as", "tuned": "d_tuned reads as", "change": "d_tuned − d_base reads as"}


def _shown(token: str) -> str:
    return token.strip() or repr(token)


def _text(rows: pd.DataFrame) -> dict[str, Any]:
    rows = rows.sort_values("pos")
    most = float(rows.activation.max()) or 1.0
    tokens = [
        {
            "text": row.token,
            "strength": f"{max(float(row.activation), 0.0) / most:.2f}",
            "title": f"{number(row.activation)} at token {row.pos}",
        }
        for row in rows.itertuples()
    ]
    return {"id": rows.prompt_id.iloc[0], "tokens": tokens, "cut": bool(rows.pos.iloc[0] > 0)}


def _effects(rows: pd.DataFrame) -> Iterator[dict[str, str]]:
    """The latent's effect in every domain, both ways, beside its two controls."""
    for (direction, domain), own in rows.groupby(["direction", "domain"], sort=False):
        by = {str(row["control"]): row for row in own.to_dict("records")}
        if "" not in by:
            continue
        real = by[""]
        controls = {
            key: estimate(one["effect"], one["lo"], one["hi"]) if (one := by.get(name)) else "–"
            for key, name in (("latent", "random latent"), ("direction", "random direction"))
        }
        effect = estimate(real["effect"], real["lo"], real["hi"])
        q = q_value(real["q"]) if pd.notna(real["q"]) else "–"
        yield {
            "way": _WAYS.get(str(direction), str(direction)),
            "domain": str(domain),
            "effect": effect,
            "q": q,
            **controls,
        }
