"""What the tables say, in sentences with their numbers. Pure: frames in, strings out."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from probes.reporting.alignment import GAP, alignment_sentences, raw_gap
from probes.reporting.behaviour_sentences import (
    behaviour_sentences,
    few_sentences,
    said_of_each,
    worse_sentences,
)
from probes.reporting.causes import agreement_sentences, causes_sentences, together_sentences
from probes.reporting.controls import control_sentence
from probes.reporting.evidence import Evidence
from probes.reporting.link_sentences import link_sentences
from probes.reporting.moved import matrices, weights_sentences
from probes.reporting.own_weights import ledger_sentences
from probes.reporting.sameness import sameness_sentences
from probes.reporting.words import listing, percent

#: Above this share of a module's move, rounding is worth a warning.
NOISY = 0.1


@dataclass(frozen=True)
class Statement:
    """A labelled part of the verdict.

    `place` is the id of the figure or section that has its numbers; `tone` its CSS class: worse, limits or nothing.
    """

    label: str
    sentences: list[str]
    tone: str = ""
    place: str = ""


def verdict(evidence: Evidence) -> list[Statement]:
    """The verdict on one tuned model, most important first."""
    got_worse = "worse" in said_of_each(evidence.behaviour).said.unique()
    statements = [
        Statement("In no table", unseen_sentences(evidence.unseen), "worse", "pair"),
        Statement("Sameness", sameness_sentences(evidence.sameness), place="pair"),
        Statement("Behaviour", behaviour_sentences(evidence.behaviour), place="behaviour"),
        Statement("Got worse", worse_sentences(evidence.behaviour), "worse" if got_worse else "", "behaviour"),
        Statement("Causes", causes_sentences(evidence.effects, evidence.behaviour), place="causes"),
        Statement("Together", together_sentences(evidence.areas), place="areas"),
        Statement("Agreement", agreement_sentences(evidence.agreement), place="agreement"),
        Statement("How sure", _sure(evidence), place="checks" if len(evidence.checks) else "causes"),
        Statement("Gates", gates_sentences(evidence.flips, evidence.gated), place="flips"),
        Statement("Own weights", ledger_sentences(evidence.ledger), place="activations"),
        Statement("Weights", weights_sentences(evidence.all_weights, evidence.n_layers), place="weights"),
        Statement("Alignment", alignment_sentences(evidence.alignment, matrices(evidence.weights)), place="weights"),
        Statement("Link", link_sentences(evidence.correlations), place="link"),
        Statement("What this run cannot show", limits(evidence), "limits"),
    ]
    return [statement for statement in statements if statement.sentences]


def unseen_sentences(unseen: str) -> list[str]:
    """A warning where the two models differ in what no table shows."""
    return (
        [f"{unseen}: no table shows them, and what they do to behaviour is attributed to no component."]
        if unseen
        else []
    )


def _sure(evidence: Evidence) -> list[str]:
    """The checks, and the effects of control vectors beside that of T."""
    if evidence.effects.empty:
        return []
    control = control_sentence(evidence)
    sentences = [f"{control[0].upper()}{control[1:]}."]
    if n := len(evidence.checks):
        failed = int((~evidence.checks.holds.astype(bool)).sum())
        sentences.append(f"All {n} checks hold." if not failed else f"{failed} of {n} checks DO NOT HOLD.")
    return sentences


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
        sentences.append(
            "The order of the modules by raw SSA is not a finding: a T with no preferred direction has the same."
        )
    if len(evidence.effects) == 0:
        sentences.append("Nothing here is causal: attribution was not measured in this run.")
    elif set(evidence.effects.method) != {"path"}:
        sentences.append("Single-component effects are not shares of the change: components work together.")
    sentences.append(
        "Intervals cover the choice of prompts, not other training seeds; SSA and norms describe the weights and say "
        "nothing of behaviour by themselves."
    )
    return sentences
