"""The tables of sparse features: dictionaries, their latents, what they read and write, and what they carry."""

from __future__ import annotations

from dataclasses import replace

from probes.store.forms.declare import table
from tv.columns import Column, keys


def _since(*columns: Column) -> tuple[Column, ...]:
    return tuple(replace(column, since=10) for column in columns)


_OF = _since(
    *keys("tuned"),
    Column("form", "`crosscoder`, `delta` (an SAE of Δh), or `public` (each model read by itself)", "name"),
    *keys("site layer"),
)
_FEATURE = _since(Column("feature", "the latent's number in its dictionary", "int32"))

table(
    "dictionaries",
    "dictionary: form, side and seed",
    (
        *_OF,
        *_since(
            Column(
                "side", "`real`; `rounded`, base beside itself in another precision; `random`, base + random T", "name"
            ),
            Column("seed", "of the training, and of the draw of random T", "int32"),
            Column("source", "`trained`, or whose format a public one has", "name"),
            Column("latents", "how many it has", "int32"),
            Column("k", "latents that fire at a place on average, as asked for; null for a public one", "int32"),
            Column("places", "tokens that it was trained on", "int32", unit="tokens"),
            Column("places_held_out", "tokens of other clusters, on which FVU is measured", "int32", unit="tokens"),
            Column("fvu_base", "fraction of variance unexplained of base's states; null for delta", words="FVU, base"),
            Column("fvu_tuned", "of the tuned model's", words="FVU, tuned"),
            Column("fvu_delta", "of Δh", words="FVU, Δh"),
            Column("pca_base", "the same of a PCA of base's states with k components", words="FVU of PCA, base"),
            Column("pca_tuned", "of a PCA of the tuned model's", words="FVU of PCA, tuned"),
            Column("pca_delta", "of a PCA of Δh", words="FVU of PCA, Δh"),
            Column("l0", "latents that fire at a held-out place, mean", unit="latents", words="L0"),
            Column("dead", "of latents that fire at fewer than 16 places", words="dead latents"),
            Column("stability", "mean cosine of decoder rows with another seed's, matched one to one"),
            Column("change_largest", "the largest change of a latent that is not dead, as in `features`"),
            Column("cosine_least", "the least cosine of the two decoder rows"),
            Column("share_least", "the least share of a latent that base has, as in `features`"),
            Column(
                "new", "latents called new, by thresholds that this dictionary did not set", "int32", unit="latents"
            ),
            Column("lost", "called lost", "int32", unit="latents"),
            Column("shifted", "called shifted", "int32", unit="latents"),
            Column("called", "of latents that are not dead: new, lost or shifted. Of a null: the false rate"),
        ),
    ),
    since=10,
)
table(
    "features",
    "latent of the first seed's dictionary of the real pair",
    (
        *_OF,
        *_FEATURE,
        *_since(
            Column("rank", "what moved first; within that, by energy; 0 leads", "int32"),
            Column("class", "`new lost shifted`: beyond both nulls; `shared`: not; `dead`: fires too seldom", "name"),
            Column("fires", "places where it fires in either model", "int32", unit="tokens"),
            Column("rate_base", "of places where it fires in base", words="firing rate, base"),
            Column("rate_tuned", "in tuned; of a crosscoder the same", words="firing rate, tuned"),
            Column("norm_base", "‖d_base‖: what it writes in base, for an activation of 1"),
            Column("norm_tuned", "‖d_tuned‖"),
            Column("cosine", "of d_base and d_tuned; null but for crosscoders", null=1.0),
            Column("size", "the root mean square of its activation where it fires"),
            Column(
                "change",
                "root mean square of ‖its part in Δh‖/‖h_base‖ where it fires",
                null="change_null",
                words="change",
            ),
            Column("change_null", "the largest of any latent of both nulls"),
            Column("energy", "Σ‖its part in Δh‖²/Σ‖Δh‖²; parts overlap, so these need not sum to 1", null=0.0),
            Column(
                "nu_error_base", "of it in what the others leave over: base's share over tuned's", words="ν of error"
            ),
            Column("nu_error_tuned", "tuned's share over base's", words="ν of error, tuned"),
            Column(
                "nu_written_base", "of it in what all write: base's share over tuned's", words="ν of what is written"
            ),
            Column("nu_written_tuned", "tuned's share over base's", words="ν of what is written, tuned"),
            Column("cosine_null", "the least cosine of any latent of both nulls"),
            Column("share_base_null", "the least larger ν of base of any latent of both nulls"),
            Column("share_tuned_null", "of tuned"),
            Column("found_again", "the cosine of its decoder rows with its partner's in another seed's dictionary"),
        ),
    ),
    since=10,
)
table(
    "feature_rates",
    "latent and domain: how often it fires",
    (
        *_OF,
        *_FEATURE,
        *_since(
            *keys("domain"),
            Column("n", "prompts", "int32", unit="prompts"),
            Column("rate_base", "of a prompt's places, where it fires in base: mean over prompts", interval=True),
            Column("rate_tuned", "in the tuned model; of a crosscoder the same", interval=True),
        ),
    ),
    since=10,
)
table(
    "feature_texts",
    "token near a place where a latent fires most",
    (
        *_OF,
        *_FEATURE,
        *_since(
            Column("text_rank", "of the text among those where it fires; 0 is the strongest", "int16"),
            *keys("prompt_id pos"),
            Column("token", "the token as text", "name"),
            Column("activation", "its activation there, the larger of both models'"),
        ),
    ),
    since=10,
)
table(
    "feature_words",
    "latent, decoder row and word that it raises most",
    (
        *_OF,
        *_FEATURE,
        *_since(
            Column("row", "`base`, `tuned`, or `change`: d_tuned − d_base", "name"),
            Column("word_rank", "0 is the word with the largest logit", "int16"),
            Column("token_id", "the token's id in the vocabulary", "int32"),
            Column("token", "the token as text", "name"),
            Column("logit", "of the row, through the final norm and the unembedding", unit="logits"),
        ),
    ),
    since=10,
)
table(
    "feature_curves",
    "ranking, how many move together, and domain",
    (
        *keys("tuned"),
        *_since(
            Column("ranking", "`features`, `principal components`, `random directions`, or `all of Δh`", "name"),
            Column("n", "how many move together, besides the mean of Δh", "int32"),
            *keys("domain metric"),
            Column(
                "effect", "the mean change of the metric of base, on prompts that did not choose", null=0.0, centre=0.0
            ),
            Column("share", "of the whole change from base to tuned", null=0.0, interval=False),
            Column("lo", "the lower end of the share's 95 % interval over prompts"),
            Column("hi", "the upper end"),
            Column("prompts", "prompts that it is a mean over", "int32", unit="prompts"),
        ),
    ),
    since=10,
)
