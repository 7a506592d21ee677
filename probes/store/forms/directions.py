"""The tables of steering: what one vector does, and whether the behaviour is one."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

_HOW = (
    Column("source", "where the vector comes from", "name"),
    Column("op", "what is done with it: `add`, `ablate` or `clamp`", "name"),
    Column("site", "the site that is steered", "name"),
    Column("positions", "the positions of each prompt that are", "name"),
)
_EFFECT = (
    Column("n", "prompts, or clusters of them, that it is a mean over", "int32", unit="prompts"),
    Column("effect", "the mean effect towards the tuned model, held out, in the metric's unit", null=0.0, centre=0.0),
    Column("lo", "the lower end of its 95 % interval over prompts"),
    Column("hi", "the upper end"),
    Column("share", "effect ÷ the whole change of the metric; null where there is none"),
    Column("share_lo", "the lower end of its 95 % interval"),
    Column("share_hi", "the upper end"),
    Column("kl", "KL(the model ‖ the model steered), nats a token, where the metric reads"),
    Column("kl_lo", "the lower end of its 95 % interval over prompts"),
    Column("kl_hi", "the upper end"),
)
table(
    "direction_effects",
    "layer or dose or placebo, direction and domain",
    (
        *keys("tuned"),
        *_HOW,
        Column("layer", "−1: the layer that the other half of the prompts chose", "int16"),
        *keys("direction control"),
        Column("draw", "which draw of the placebo; −1 of the vector itself", "int16"),
        Column("dose", "multiple of the vector; null: the one that the other half chose"),
        *keys("domain metric"),
        *_EFFECT,
    ),
    since=10,
)
table(
    "one_vector",
    "direction and domain: is the change one vector?",
    (
        *keys("tuned"),
        *_HOW,
        *keys("direction domain metric"),
        *(Column(f"layer_{half}", f"the layer that half {half} of the prompts chose", "int16") for half in (0, 1)),
        *(Column(f"dose_{half}", f"the dose that half {half} chose") for half in (0, 1)),
        *_EFFECT,
        Column("draws", "placebos of each kind", "int32"),
        Column("random_most", "the largest |mean effect| of random vectors of the same length"),
        Column("random_p", "p by the rank of |effect| among them", words="p, random"),
        Column("shuffled_most", "the largest |mean effect| of what tells the prompts' Δh apart, with shuffled signs"),
        Column("shuffled_p", "p by the rank among these", words="p, shuffled"),
        Column("placebo_share", "the mean |share| of the placebos, of the kind that reaches further"),
        Column("answer", "`most`, `part`, `no better than placebos` or `cannot tell`", "name"),
    ),
    since=10,
)
table(
    "direction_samples",
    "prompt, model and whether it was steered",
    (
        *keys("tuned"),
        *_HOW,
        *keys("metric prompt_id model"),
        Column("steered", "whether the vector that the other half chose was added or taken away", "bool"),
        Column("continuation", "what the model wrote, greedily", "text"),
    ),
    since=10,
)
