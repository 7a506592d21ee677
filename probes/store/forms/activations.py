"""The tables of capture: prompts, tokens, predictions, gates, contributions and the ledger."""

from __future__ import annotations

from probes.store.forms.declare import table
from tv.columns import Column, keys

_PLACE = "tuned prompt_id pos layer"

table(
    "prompts",
    "prompt",
    (
        *keys("prompt_id"),
        Column("set", "the file or data set that it came from", "name"),
        *keys("domain"),
        Column("text", "what both models read", "text"),
        Column("target", "the continuation that counts as right; null where none is given", "text"),
        Column("foil", "the continuation that it is compared with", "text"),
        Column("continuation", "what follows the text where the suite asks for one", "text"),
        Column("chat", "the conversation as it was given, where it was one", "text"),
        Column("cluster", "prompts of one cluster are drawn together", "name"),
        Column("answer_pos", "the place at which the answer is due: what comes next parts target and foil", "int32"),
    ),
)
table(
    "tokens",
    "token of a prompt",
    (
        *keys("tuned prompt_id pos"),
        Column("token_id", "the token's id in the vocabulary", "int32"),
        Column("token", "the token as text", "name"),
        Column("role", "whose words it is: `system`, `user`, `answer`, or the chat `template`'s", "name", since=4),
        Column("nll_base", "the base's loss of this token", unit="nats", words="loss of the token, base"),
        Column("nll_tuned", "the tuned model's", unit="nats", words="loss of the token, tuned"),
        Column("kl", "KL(base ‖ tuned) of what comes next", unit="nats", words="KL(base ‖ tuned)", null=0.0),
        Column("greedy_base", "the id that the base would choose next", "int32"),
        Column("greedy_tuned", "the id that the tuned model would choose next", "int32"),
        Column("greedy_token_base", "the base's choice as text", "name"),
        Column("greedy_token_tuned", "the tuned model's choice as text", "name"),
    ),
)
table(
    "predictions",
    "model, place of a prompt and rank: the five likeliest next tokens",
    (
        *keys("model prompt_id pos"),
        Column("rank", "1 is the likeliest", "int16"),
        Column("token_id", "the id of a token that may come next", "int32"),
        Column("token", "the token as text", "name"),
        Column("probability", "its probability there", words="probability of the next token"),
    ),
    since=11,
)
table(
    "lens",
    "place of a prompt and layer, read through the final norm and the unembedding",
    (
        *keys(_PLACE),
        Column("target_id", "the id of the token that follows", "int32"),
        Column("rank_base", "its rank at this depth in the base; 0 is first", "int32"),
        Column("rank_tuned", "the same in the tuned model", "int32"),
        Column("prob_base", "its probability at this depth in the base"),
        Column("prob_tuned", "the same in the tuned model"),
        Column("kl", "KL(base ‖ tuned) at this depth", unit="nats", null=0.0),
    ),
    partitions=("tuned", "layer"),
)
table(
    "noise_floor",
    "precision and layer: the base against itself",
    (
        Column("precision", "the other precision in which the base ran", "name"),
        *keys("layer"),
        Column("n", "prompts that it is a mean over", "int32", unit="prompts"),
        Column("flip_rate", "of gates that flip in that precision", words="gate flip rate", interval=True, null=0.0),
        Column("jaccard", "overlap of open gates: both open / either open"),
        Column("relative_change", "‖Δ‖/‖h‖ of the residual stream"),
    ),
)
table(
    "gates",
    "place of a prompt, layer and expert",
    (
        *keys(f"{_PLACE} expert"),
        Column("gate_base", "the base's open gates, a bit a neuron, the most significant first, then zeros", "bytes"),
        Column("gate_xor", "the gates that flipped, packed alike: `probes.measures.gates.unpack`", "bytes"),
        Column("n_flips", "gates that flipped", "int32", unit="neurons", words="gates flipped"),
        Column(
            "flip_rate",
            "of gates that flipped: the normalised Hamming distance",
            words="gate flip rate",
            null="chance_flip_rate",
            role="activation",
        ),
        Column("chance_flip_rate", "what the two rates of open gates give by chance", words="by chance"),
        Column("flip_kappa", "1 − flip_rate/chance_flip_rate", words="κ of gate flips", null=0.0, centre=0.0),
        Column("edit_distance", "the normalised Levenshtein distance of the two patterns", null="chance_edit_distance"),
        Column("chance_edit_distance", "what shuffled flips give"),
        Column("edit_kappa", "1 − edit_distance/chance_edit_distance", null=0.0, centre=0.0),
        Column("jaccard", "overlap of open gates: both open / either open", null="chance_jaccard"),
        Column("chance_jaccard", "what the two rates of open gates give by chance"),
        Column("jaccard_kappa", "(jaccard − chance)/(1 − chance)", null=0.0, centre=0.0),
        Column("active_base", "of gates that are open in the base"),
        Column("active_tuned", "of gates that are open in the tuned model"),
        Column("gated", "false where the MLP has no gate and the sign of the pre-activation stands in", "bool"),
    ),
    partitions=("tuned", "layer"),
)
table(
    "neurons",
    "neuron and domain",
    (
        *keys("tuned domain layer expert neuron"),
        Column("n", "places that were counted", "int32", unit="places"),
        Column("n_flips", "where its gate flipped", "int32", unit="places"),
        Column("n_active_base", "where it was open in the base", "int32", unit="places"),
        Column("n_active_tuned", "where it was open in the tuned model", "int32", unit="places"),
    ),
)
table(
    "neuron_tokens",
    "listed neuron, model, and token at which its gate is among the largest in that model",
    (
        *keys("tuned layer expert neuron model"),
        Column("rank", "1 is the largest; a prompt has one at most", "int16"),
        *keys("prompt_id pos"),
        Column("before", "the tokens before it", "text"),
        Column("token", "the token", "text"),
        Column("after", "the tokens after it", "text"),
        Column("value_base", "what enters the gate's activation function there in the base; open above 0"),
        Column("value_tuned", "in the tuned model"),
    ),
    since=11,
)
table(
    "contributions",
    "model, place of a prompt and component: what it adds to the residual stream",
    (
        *keys("model prompt_id pos layer component expert head"),
        Column("norm", "‖contribution‖"),
        Column("dla", "direct logit attribution to target − foil through the frozen final norm", unit="logits"),
    ),
    partitions=("layer",),
)
table(
    "changes",
    "place of a prompt and component: its contribution in both models",
    (
        *keys(f"{_PLACE} component expert head"),
        Column("norm_base", "‖contribution‖ in the base"),
        Column("norm_tuned", "‖contribution‖ in the tuned model"),
        Column("delta_norm", "‖Δ‖ of the contribution", words="contribution change ‖Δ‖", null=0.0, role="activation"),
        Column("relative_change", "‖Δ‖/norm_base", words="relative contribution change", null=0.0, role="activation"),
        Column("cosine", "of the two contributions", null=1.0),
        Column("dla_base", "direct logit attribution in the base", unit="logits", centre=0.0),
        Column("dla_tuned", "direct logit attribution in the tuned model", unit="logits", centre=0.0),
        Column("expert_overlap", "of the experts chosen by either model, those chosen by both; null elsewhere"),
    ),
    partitions=("tuned", "layer"),
)
table(
    "ledger",
    "place of a prompt and module: its output change Δy, split exactly",
    (
        *keys(f"{_PLACE} module expert"),
        Column("delta_norm", "‖Δy‖", words="whole change of the output ‖Δy‖", null=0.0),
        Column("direct_norm", "‖T x + Δb‖: this module's own weights", words="direct term ‖T x‖", null="direct_null"),
        Column("direct_null", "the direct term of a T of this norm without direction"),
        Column("inherited_norm", "‖W Δx‖: what came in with the input", words="inherited term ‖W Δx‖"),
        Column("interaction_norm", "‖T Δx‖: both at once", words="interaction ‖T Δx‖"),
        Column("direct_share", "⟨T x + Δb, Δy⟩/‖Δy‖²; null where Δy is below 0.1 of a term, or rounding", since=5),
        Column("inherited_share", "⟨W Δx, Δy⟩/‖Δy‖²; the three sum to 1, and one may be negative", since=5),
        Column("interaction_share", "⟨T Δx, Δy⟩/‖Δy‖²", since=5),
        Column("amplified_norm", "‖Π T x‖: inside the pretrained output directions at ε = 0.05"),
        Column("new_norm", "‖(I − Π) T x‖: outside of them"),
        Column(
            "new_share",
            "new_norm²/direct_norm²; null where T is 0",
            words="share in new directions",
            null="new_share_null",
        ),
        Column("new_share_null", "1 − k/m: of a T with no preferred direction"),
        Column("new_share_of_w", "the share of ‖W x‖² there: of a T that is a multiple of W", since=5),
        Column("new_share_10", "the same outside the leading 10 % of directions", null="new_share_10_null"),
        Column("new_share_10_null", "its null"),
        Column("new_share_10_of_w", "of ‖W x‖²", since=5),
        Column("closure", "the relative error of the sum of all terms", null=0.0),
    ),
    partitions=("tuned", "layer"),
)
table(
    "vectors",
    "place of a prompt, layer and site that the suite keeps; `Run.vectors` reads them as arrays",
    (
        *keys(f"{_PLACE} site"),
        Column("vector_base", "the base's vector, float16", "bytes"),
        Column("vector_tuned", "the tuned model's vector, float16", "bytes"),
    ),
    partitions=("tuned", "site", "layer"),
)
