"""The tables of attention patterns."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

_SINCE = 10
_SCORES = (
    Column("score_own", "the share of the change of the scores that the head's own weights make, on the base's input"),
    Column("score_inherited", "the share that its moved input makes, under the base's weights"),
    Column("score_interaction", "the rest: moved weights on what moved of the input; the three sum to 1"),
)
_FIRST = (
    Column("first_base", "the mean weight on a prompt's first token in the base"),
    Column("first_tuned", "the same in the tuned model"),
)

table(
    "attention",
    "prompt, head and kind of query",
    (
        *keys("tuned prompt_id layer component head"),
        Column(
            "place", "which queries: `all`, `first`, `answer` (the place that predicts the answer) or `rest`", "name"
        ),
        Column("n", "queries that it is a mean over; those that see one key alone are left out", "int32"),
        Column("js", "Jensen–Shannon divergence of the base's and the tuned model's pattern", unit="nats", null=0.0),
        Column("js_own", "the same where only the head's own weights are the tuned model's", unit="nats", null=0.0),
        Column("js_inherited", "the same where only its input is the tuned model's", unit="nats", null=0.0),
        Column("own", "the part of `js` that its own weights make, the mean of both orders", unit="nats", null=0.0),
        Column("inherited", "the part that its input makes; the two sum to `js`", unit="nats", null=0.0),
        Column("score_change", "root mean square change of the scores before the softmax, about their mean over keys"),
        *_SCORES,
        *_FIRST,
        Column("error", "the largest error of a pattern that was made again, and of the three terms' sum"),
    ),
    since=_SINCE,
)
table(
    "attention_heads",
    "domain and head",
    (
        *keys("tuned domain layer component head"),
        Column("n", "prompts, or clusters of them, that it is a mean over", "int32", unit="prompts"),
        Column(
            "js",
            "mean Jensen–Shannon divergence of both models' patterns",
            unit="nats",
            null="js_random",
            interval=True,
        ),
        Column("js_floor", "the same of the base in another precision: what rounding does", unit="nats"),
        Column("js_random", "the same of random T of T's norms, the geometric mean of the draws", unit="nats"),
        Column("js_random_most", "the largest of the draws", unit="nats"),
        Column("draws", "draws of random T", "int16"),
        Column("p", "of one more random T reaching this divergence"),
        Column("q", "the false-discovery rate over heads", words="q"),
        Column("stands_out", "whether q is below 0.05 and the interval lies above the rounding floor", "bool"),
        Column("own_share", "the share of `js` that the head's own weights make", interval=True),
        Column("own_share_random", "the same share under random T"),
        *_SCORES,
        *_FIRST,
        Column("error", "the largest error of a pattern that was made again, and of the three terms' sum"),
    ),
    since=_SINCE,
)
#: The weight that a query gives a key.
_WEIGHTS = (
    Column("query_pos", "the query's place in the prompt", "int32"),
    Column("query", "its token", "text"),
    Column("key_pos", "the key's place; −1 is the sink, nothing at all", "int32"),
    Column("key", "its token", "text"),
    Column("weight_base", "the attention weight in the base"),
    Column("weight_tuned", "in the tuned model"),
)
table(
    "attention_pairs",
    "head that stands out, and query–key pair whose weight changed most",
    (
        *keys("tuned layer component head prompt_id"),
        Column("rank", "1 is the largest change of the head", "int16"),
        *_WEIGHTS,
        Column("weight_own", "with the tuned model's weights of this module on the base's input"),
        Column("weight_inherited", "with the base's weights on the tuned model's input"),
    ),
    since=_SINCE,
)
table(
    "attention_patterns",
    "head that changed most, prompt, query and key that it sees",
    (
        *keys("tuned prompt_id layer component head"),
        *_WEIGHTS,
    ),
    since=11,
)
