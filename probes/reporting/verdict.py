"""What the tables say, in sentences with their numbers. Pure: frames in, strings out."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from probes.reporting.alignment import GAP, alignment_sentences, raw_gap
from probes.reporting.behaviour_sentences import (
    behaviour_headlines,
    behaviour_sentences,
    few_sentences,
    said_of_each,
    worse_sentences,
)
from probes.reporting.causes import causes_sentences, largest_sentence
from probes.reporting.controls import control_sentence
from probes.reporting.evidence import Evidence
from probes.reporting.link_sentences import link_sentences
from probes.reporting.moved import groups, matrices, moved, moves, place, weights_sentences
from probes.reporting.own_doing import ledger_sentences
from probes.reporting.sameness import sameness_sentences
from probes.reporting.words import (
    listing,
    number,
    percent,
)

#: Above this share of a module's move, rounding is worth a warning.
NOISY = 0.1


@dataclass(frozen=True)
class Statement:
    """A labelled part of the verdict; `tone` is its CSS class on the page: worse, limits or nothing."""

    label: str
    sentences: list[str]
    tone: str = ""


def verdict(evidence: Evidence) -> list[Statement]:
    """The verdict on one tuned model, most important first."""
    got_worse = "worse" in said_of_each(evidence.behaviour).said.unique()
    statements = [
        Statement("Unseen", unseen_sentences(evidence.unseen), "worse"),
        Statement("Sameness", sameness_sentences(evidence.sameness)),
        Statement("Behaviour", behaviour_sentences(evidence.behaviour)),
        Statement("Got worse", worse_sentences(evidence.behaviour), "worse" if got_worse else ""),
        Statement("Causes", causes_sentences(evidence.effects, evidence.behaviour)),
        Statement("Weights", weights_sentences(evidence.all_weights, evidence.n_layers)),
        Statement("Alignment", alignment_sentences(evidence.alignment, matrices(evidence.weights))),
        Statement("Gates", gates_sentences(evidence.flips, evidence.gated)),
        Statement("Own doing", ledger_sentences(evidence.ledger)),
        Statement("Link", link_sentences(evidence.correlations)),
        Statement("Does not hold", limits(evidence), "limits"),
    ]
    return [statement for statement in statements if statement.sentences]


def unseen_sentences(unseen: str) -> list[str]:
    """A warning where the two models differ in what no table shows."""
    return [f"{unseen}: what they do to behaviour is attributed to nothing."] if unseen else []


@dataclass(frozen=True)
class Headline:
    """A summary sentence, and the id (without the model's) of the figure or section that has its numbers."""

    text: str
    place: str


def headline(evidence: Evidence) -> list[Headline]:
    """At most five sentences: what changed, what got worse, where, by which components, and how sure that is."""
    sentences = [Headline(text, "causes") for text in behaviour_headlines(evidence.behaviour)]
    if where := _where(evidence):
        sentences.append(Headline(where, "flips" if len(evidence.flips) else "weights"))
    if len(evidence.effects):
        sentences.append(Headline(largest_sentence(evidence.effects, evidence.behaviour), "causes"))
        sentences.append(Headline(_how_sure(evidence), "checks" if len(evidence.checks) else "causes"))
    return sentences


def _where(evidence: Evidence) -> str:
    rows, parts = moved(evidence.all_weights), []
    if len(rows):
        top = rows.loc[rows.relative_norm.idxmax()]
        parts.append(
            f"weights moved most in {place(top, evidence.n_layers)} (‖T‖/‖W‖ = {number(top.relative_norm)}, median "
            f"{number(rows.relative_norm.median())})"
        )
    elif names := groups(evidence.all_weights[moves(evidence.all_weights)]):
        parts.append(f"no matrix of the language model moved, only {listing(names)}")
    if len(evidence.flips):
        means = evidence.flips.groupby("layer")[["flip_rate", "chance_flip_rate"]].mean().mean()
        floor = evidence.noise_floor.flip_rate.mean() if len(evidence.noise_floor) else float("nan")
        rounding = f", {percent(floor)} by rounding alone" if pd.notna(floor) else ""
        what = "gates" if evidence.gated else "pre-activations"
        parts.append(
            f"{percent(means.flip_rate)} of {what} changed sign ({percent(means.chance_flip_rate)} if the models were "
            f"unrelated{rounding})"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _how_sure(evidence: Evidence) -> str:
    """The checks, and the effects of control vectors beside that of T."""
    parts = []
    if len(evidence.checks):
        failed = int((~evidence.checks.holds.astype(bool)).sum())
        n = len(evidence.checks)
        parts.append(f"all {n} checks hold" if not failed else f"{failed} of {n} checks DO NOT HOLD")
    parts.append(control_sentence(evidence))
    return f"How sure: {'; '.join(parts)}; intervals cover prompts, not training seeds."


def gates_sentences(flips: pd.DataFrame, gated: bool) -> list[str]:
    """How many gates flipped, where, and how many would by chance."""
    if flips.empty:
        return []
    layers = flips.groupby("layer")[["flip_rate", "chance_flip_rate"]].mean()
    top, low = layers.flip_rate.idxmax(), layers.flip_rate.idxmin()
    domains = flips.groupby("domain", sort=False).flip_rate.mean()
    what = "gates" if gated else "signs of the pre-activation (no GLU)"
    by_domain = listing([f"{domain} {percent(rate)}" for domain, rate in domains.items()])
    return [
        f"{percent(layers.flip_rate.mean())} of {what} flipped on average: most in layer {top} "
        f"({percent(layers.flip_rate[top])}), least in layer {low} ({percent(layers.flip_rate[low])}); unrelated "
        f"patterns of the same activity would differ in {percent(layers.chance_flip_rate.mean())}. By domain: "
        f"{by_domain}."
    ]


def limits(evidence: Evidence) -> list[str]:
    """What a reader must not conclude from this run."""
    sentences = []
    if not evidence.gated and len(evidence.flips):
        sentences.append("Gate patterns here are the sign of the MLP's pre-activation: this architecture has no GLU.")
    sentences += few_sentences(evidence.behaviour)
    if len(evidence.weights) and evidence.weights.noise_share.max() > NOISY:
        noisy = int((evidence.weights.noise_share > NOISY).sum())
        sentences.append(f"In {noisy} modules more than {percent(NOISY)} of T is rounding of the stored dtype.")
    if raw_gap(evidence.alignment) < GAP:
        sentences.append("The order of the modules by raw SSA is no finding: a T with no direction has it too.")
    if len(evidence.effects) == 0:
        sentences.append("Nothing here is causal: attribution was not measured in this run.")
    elif set(evidence.effects.method) != {"path"}:
        sentences.append("Single-component effects are not shares of the change: components work together.")
    sentences.append(
        "Intervals cover the choice of prompts, not other training seeds; SSA and norms describe the weights and say "
        "nothing of behaviour by themselves."
    )
    return sentences
