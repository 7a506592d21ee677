"""The schemas of a run's tables, in one place."""

from __future__ import annotations

import pyarrow as pa

#: Raised whenever a column of a table comes, goes, or means something else. A run of another version is not read.
SCHEMA_VERSION = 3
#: The `domain` of an effect over every prompt, beside those of each domain.
ALL_DOMAINS = "all"

TEXT = pa.string()
NAME = pa.dictionary(pa.int32(), pa.string())
SMALL, INT, REAL, BITS = pa.int16(), pa.int32(), pa.float32(), pa.binary()
_TYPES = {
    **dict.fromkeys(("text", "target", "foil", "continuation", "chat"), TEXT),
    **dict.fromkeys(("layer", "head", "expert", "cut", "draw"), SMALL),
    **dict.fromkeys(("pos", "answer_pos", "token_id", "rows", "cols", "k", "dim", "rank", "n", "neuron"), INT),
    **dict.fromkeys(("n_flips", "n_active_base", "n_active_tuned"), INT),
    **dict.fromkeys(("target_id", "rank_base", "rank_tuned", "greedy_base", "greedy_tuned"), INT),
    **dict.fromkeys(("tied", "at_ceiling", "gated", "holds"), pa.bool_()),
    # fixed_size_binary in the files, as wide as the model needs: packed bits, and vectors of float16
    **dict.fromkeys(("gate_base", "gate_xor", "vector_base", "vector_tuned"), BITS),
    **dict.fromkeys(("epsilon", "level"), pa.float64()),  # ids, not measures: 0.05 must equal 0.05
}
_NAMES = {
    *("tuned", "model", "prompt_id", "set", "domain", "token", "module", "component", "side", "kind", "site"),
    *("precision", "scope", "greedy_token_base", "greedy_token_tuned"),
    *("cluster", "control", "reference", "ranking", "upstream", "late", "check", "over"),
    *("k_rule", "null", "granularity", "method", "direction", "metric", "weight_measure", "activation_measure"),
}


def _schema(columns: str) -> pa.Schema:
    """Columns in order. A name says its type; what is neither id nor name is a float32 measure."""
    return pa.schema([(name, NAME if name in _NAMES else _TYPES.get(name, REAL)) for name in columns.split()])


def _interval(*measures: str) -> str:
    return " ".join(f"{name} {name}_lo {name}_hi" for name in measures)


_UNIT = "granularity layer component module head expert neuron"

#: Every table of a run. Null stands for "not measured" and reads as NaN.
SCHEMAS: dict[str, pa.Schema] = {
    "weights": _schema(
        "tuned layer module head expert kind rows cols tied weight_norm delta_norm relative_norm cosine "
        "cos_weight_delta changed_fraction changed_fraction_bf16 noise_share large_overlap large_overlap_null "
        "small_overlap small_overlap_null stable_rank effective_rank participation_ratio weight_stable_rank "
        "weight_effective_rank weight_participation_ratio diagonal_energy diagonal_energy_null spectral_shift "
        "kept_left kept_right largest_angle_left largest_angle_right intruders_left intruders_right "
        "intruders_null_left intruders_null_right"
    ),
    "alignment": _schema(
        "tuned layer module head expert side k_rule level epsilon k dim ssa ssa_null kappa ssa_z at_ceiling null"
    ),
    "spectra": _schema(
        "tuned layer module expert rank sigma sigma_delta share_left share_null_left share_right share_null_right"
    ),
    "cosines": _schema("tuned reference scope layer cosine cosine_null_sd cosine_z sign_conflict sign_conflict_null"),
    "prompts": _schema("prompt_id set domain text target foil continuation chat cluster answer_pos"),
    "tokens": _schema(
        "tuned prompt_id pos token_id token nll_base nll_tuned kl greedy_base greedy_tuned "
        "greedy_token_base greedy_token_tuned"
    ),
    "lens": _schema("tuned prompt_id pos layer target_id rank_base rank_tuned prob_base prob_tuned kl"),
    "noise_floor": _schema("precision layer n flip_rate flip_rate_lo flip_rate_hi jaccard relative_change"),
    "gates": _schema(
        "tuned prompt_id pos layer expert gate_base gate_xor n_flips flip_rate chance_flip_rate flip_kappa "
        "edit_distance chance_edit_distance edit_kappa jaccard chance_jaccard jaccard_kappa active_base active_tuned "
        "gated"
    ),
    "neurons": _schema("tuned domain layer expert neuron n n_flips n_active_base n_active_tuned"),
    "contributions": _schema("model prompt_id pos layer component expert head norm dla"),
    "changes": _schema(
        "tuned prompt_id pos layer component expert head norm_base norm_tuned delta_norm relative_change cosine "
        "dla_base dla_tuned expert_overlap"
    ),
    "ledger": _schema(
        "tuned prompt_id pos layer module expert delta_norm direct_norm direct_null inherited_norm interaction_norm "
        "amplified_norm new_norm new_share new_share_null new_share_10 new_share_10_null closure"
    ),
    "vectors": _schema("tuned prompt_id pos layer site vector_base vector_tuned"),
    "behaviour": _schema("prompt_id model metric value"),
    "effects": _schema(f"tuned {_UNIT} domain method direction control metric effect lo hi p q"),
    "prompt_effects": _schema(f"tuned {_UNIT} method direction control metric prompt_id effect"),
    "token_effects": _schema("tuned prompt_id pos layer component method metric effect"),
    "neuron_effects": _schema("tuned domain layer expert neuron method metric n effect se"),
    "depth": _schema("tuned cut upstream late domain metric value lo hi"),
    "curves": _schema("tuned ranking draw direction n domain metric value lo hi"),
    "areas": _schema("tuned ranking draw direction metric area n_enough"),
    "agreement": _schema(
        "tuned granularity method direction reference domain metric rho lo hi n split_half chosen_here chosen_there"
    ),
    "checks": _schema("tuned check method domain metric value bound holds"),
    "link": _schema(
        "tuned kind layer component module relative_norm cosine cos_weight_delta noise_share ssa_left ssa_null_left "
        "kappa_left ssa_right ssa_null_right kappa_right ssa_two_sided ssa_null_two_sided kappa_two_sided ssa10_left "
        "kappa10_left ssa10_right kappa10_right "
        + _interval("direct_norm", "inherited_norm", "interaction_norm", "ledger_delta_norm", "direct_share")
        + " new_share_null "
        + _interval("new_share", "new_share_10", "change_delta_norm", "change_relative", "change_cosine", "dla_change")
        + " chance_flip_rate "
        + _interval("flip_rate", "path", "graft", "revert")
    ),
    "correlations": _schema("tuned kind over weight_measure activation_measure rho lo hi n null_lo null_hi p"),
}
#: Tables that are split into directories, and by what.
PARTITIONS: dict[str, tuple[str, ...]] = {
    "gates": ("tuned", "layer"),
    "contributions": ("layer",),
    "changes": ("tuned", "layer"),
    "ledger": ("tuned", "layer"),
    "lens": ("tuned", "layer"),
    "vectors": ("tuned", "site", "layer"),
}
