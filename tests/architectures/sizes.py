"""The sizes of tiny models: what every configuration gets, and what a type needs besides."""

from __future__ import annotations

from typing import Any

#: Sizes are odd numbers of different kinds, so that no test passes because two dimensions happen to agree.
VOCABULARY = 211

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"


def _all(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


#: What a language model's configuration gets where it has a field of the name.
TEXT: dict[str, Any] = {
    **_all(VOCABULARY, "vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"),
    # width
    **_all(48, "hidden_size", "d_model", "n_embd", "emb_dim", "embedding_dim", "word_embed_proj_dim"),
    **_all(36, "embedding_size", "input_embedding_size"),
    "output_embedding_size": 44,
    # feed-forward
    **_all(
        80, "intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dff", "d_ff", "dim_ff"
    ),
    **_all(80, "ffn_hidden_size", "d_inner", "feed_forward_size", "intermediate_size_mlp"),
    **_all(24, "moe_intermediate_size", "expert_ffn_hidden_size"),
    **_all(40, "shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim"),
    **_all(40, "moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"),
    **_all(88, "dense_intermediate_size", "prefix_dense_intermediate_size"),
    # experts
    **_all(5, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    **_all(2, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts"),
    **_all(1, "n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers"),
    "mlp_only_layers": [0],
    "moe_hidden_size": 30,
    # attention
    **_all(4, "num_attention_heads", "n_head", "n_heads", "attention_heads", "decoder_attention_heads", "num_heads"),
    **_all(4, "encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"),
    **_all(4, "swa_num_attention_heads", "num_sliding_attention_heads"),
    **_all(2, "num_key_value_heads", "swa_num_key_value_heads", "num_kv_heads", "kv_n_heads"),
    **_all(16, "head_dim", "swa_head_dim", "kv_channels", "d_kv", "dim_head", "query_pre_attn_scalar"),
    **_all(12, "qk_nope_head_dim", "d_head", "attention_head_size"),
    "v_head_dim": 10,
    "qk_rope_head_dim": 8,
    "rotary_dim": 6,
    **_all(0.5, "rotary_pct", "partial_rotary_factor"),
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "o_lora_rank": 18,
    "o_groups": 2,
    **_all(16, "index_head_dim", "indexer_head_dim"),
    **_all(3, "index_n_heads", "indexer_n_heads"),
    "index_topk": 6,
    **_all(5, "sliding_window", "sliding_window_size", "window_size", "attention_window_size"),
    **_all(6, "attention_chunk_size", "local_attention"),
    # linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 14,
    "linear_num_heads": 3,
    "linear_head_dim": 12,
    **_all(6, "mamba_n_heads", "mamba_num_heads"),
    **_all(16, "mamba_d_head", "mamba_head_dim"),
    **_all(9, "mamba_d_state", "ssm_state_size", "state_size"),
    **_all(7, "mamba_dt_rank", "time_step_rank"),
    **_all(2, "mamba_n_groups", "n_groups", "mamba_ngroups"),
    **_all(8, "mamba_chunk_size", "chunk_size"),
    # ranks
    "hidden_size_per_layer_input": 14,
    **_all(11, "laurel_rank", "hc_lowrank", "gated_norm_rank", "adapter_rank"),
    **_all(18, "router_hidden_size", "ple_embed_dim"),
    # depth
    **_all(2, "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "layers", "decoder_layers"),
    **_all(2, "encoder_layers", "num_decoder_layers", "num_encoder_layers", "num_layers_per_stack"),
    # positions
    **_all(128, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"),
    **_all(128, "original_max_position_embeddings", "model_max_length", "context_length"),
    # factors
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
    # between tower and language model
    "out_hidden_size": 48,
    **_all(52, "projector_hidden_size", "projection_hidden_size", "projection_intermediate_size"),
    **_all(52, "alignment_intermediate_size", "projection_hidden_dim", "projection_dim", "merged_hidden_size"),
    # redrawn anyhow: what initialisation leaves tiny must stay tiny
    "initializer_range": 0.02,
}
#: What a tower (vision, audio, …) gets instead.
TOWER: dict[str, Any] = TEXT | {
    **_all(32, "hidden_size", "d_model", "embed_dim", "encoder_hidden_size"),
    **_all(44, "intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "mlp_dim", "d_ff"),
    **_all(1, "depth", "num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "layers", "n_layers"),
    **_all(4, "num_attention_heads", "num_heads", "encoder_attention_heads", "num_key_value_heads"),
    **_all(8, "head_dim", "attention_head_dim", "d_kv"),
    **_all(48, "out_hidden_size", "text_hidden_size"),
    "image_size": 28,
    "patch_size": 14,
    "max_position_embeddings": 16,
    **_all(4, "pos_emb_height", "pos_emb_width", "posemb_grid_size", "num_position_embeddings"),
    **_all(12, "num_mel_bins", "n_mel_bins", "feature_size"),
    "max_source_positions": 20,
}

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
#: A position table that has a place for pad_token_id and those after it.
_PADDED_POSITIONS = {"max_position_embeddings": 300}
_BIGBIRD = {"attention_type": "original_full"}
_GROUPS = {"n_routed_experts": 6, "n_group": 2, "topk_group": 1}
_GEMMA4 = {
    "num_hidden_layers": 4,
    "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "global_head_dim": 24,
}
_VQ = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 6, "embed_dim": 6}
#: What a type needs besides, also where it is a part of another; a dictionary under a part's name is that part's.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {},
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": _BIGBIRD,
    "bigbird_pegasus": _BIGBIRD,
    "camembert": _PADDED_POSITIONS,
    "chameleon": {"vocabulary_map": {"<image>": 200, "IMGIMGBA": 199}, "vq_config": _VQ},
    "cohere_compass_text": {
        "layer_types": [_SLIDING, _FULL],
        "rope_parameters": {kind: _ROPE | {"mrope_section": [4, 2, 2]} for kind in (_SLIDING, _FULL)},
    },
    "cosmos3_edge_text": {"rope_parameters": _ROPE | {"mrope_section": [4, 2, 2]}},
    "data2vec-text": _PADDED_POSITIONS,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 1.5},
        "ffn_config": {"hidden_size": 48, "ffn_hidden_size": 24},
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "deepseek_v2": _GROUPS | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": _GROUPS,
    "dots1": {"n_shared_experts": 1},
    "emu3": {"vq_config": _VQ | {"codebook_size": 16}},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [24, 22],
        "rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]},
    },
    "falcon_h1": {
        "mamba_d_ssm": 96,
        "lm_head_multiplier": 0.7,
        "embedding_multiplier": 1.4,
        "mlp_multipliers": [1.2, 0.8],
        "key_multiplier": 0.9,
        "attention_out_multiplier": 0.6,
        "attention_in_multiplier": 1.1,
        "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
        "ssm_in_multiplier": 1.3,
        "ssm_out_multiplier": 0.5,
    },
    "florence2": {
        "vision_config": {
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "projection_dim": 48,
        }
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "num_kv_shared_layers": 2,
        "intermediate_size": [80, 80, 72, 72],
        "activation_sparsity_pattern": [0.6, 0.0, 0.0, 0.0],
        "altup_num_inputs": 3,
    },
    "gemma4": {
        "text_config": {
            "num_hidden_layers": 2,
            "layer_types": [_SLIDING, _FULL],
            "num_kv_shared_layers": 0,
            "use_double_wide_mlp": False,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
        },
        "vision_config": {"position_embedding_size": 16},
        "audio_config": {},
    },
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"vision_config": {}, "audio_config": {}},
    "gemma4_unified_text": {"global_head_dim": 24},
    "glm4v_moe_text": {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 1]}},
    "glm4v_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "glm5_next_text": {"qk_rope_head_dim": 0, "head_dim": 0, "index_kpool": 2},
    "glm_ocr_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [1]},
    "granitemoehybrid": {"layer_types": [_LINEAR, _FULL]},
    "helium": {"head_dim": 12},
    "hunyuan_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2, 2]}},
    "jamba": {"num_hidden_layers": 3, "attn_layer_period": 3, "attn_layer_offset": 2},
    "janus": {"vq_config": _VQ | {"num_embeddings": 16, "num_patches": 2, "image_token_embed_dim": 32}},
    "kosmos_2_5_text_model": _PADDED_POSITIONS,
    "kosmos_2_text_model": _PADDED_POSITIONS,
    "lfm2": {"layer_types": ["conv", _FULL], "block_multiple_of": 8},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", _FULL, "conv"]},
    "llama4_text": {
        "layer_types": ["chunked_attention", _FULL],
        "no_rope_layers": [1, 0],
        "moe_layers": [1],
        "num_experts_per_tok": 1,
        "intermediate_size": 24,
    },
    "mamba2": {"num_heads": 6},
    "minicpm3": {"dim_model_base": 24},
    "minimax": {
        "full_attn_alpha_factor": 1.3,
        "full_attn_beta_factor": 0.8,
        "linear_attn_alpha_factor": 1.2,
        "linear_attn_beta_factor": 0.7,
        "mlp_alpha_factor": 1.1,
        "mlp_beta_factor": 0.6,
        "block_size": 4,
    },
    "molmo2": {
        "vision_config": {"image_size": [28, 28]},
        "adapter_config": {"vision_feature_layer": [0], "text_hidden_size": 48},
    },
    "molmo2_text": {"additional_vocab_size": 4},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "paddleocr_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [4, 2, 2]}},
    "prophetnet": _PADDED_POSITIONS,
    "qwen2_5_omni_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 192},
    "qwen2_5_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "qwen2_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 192},
    "qwen4_exp_text": {
        "indexer_kv_heads": 1,
        "indexer_budget": 6,
        "indexer_compress_ratio": 2,
        "hc_count": 2,
        "ple_layer_ids": [1],
        "heads_per_ngram": 2,
        "ngram_vocab_size_base": 31,
        "make_ngram_vocab_size_divisible_by": 4,
        "split_ngram_parts": 1,
    },
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "hash_seed": 0, "num_buckets": 2},
    "roberta": _PADDED_POSITIONS,
    "roberta-prelayernorm": _PADDED_POSITIONS,
    "roc_bert": {
        "pronunciation_embed_dim": 20,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 22,
        "shape_vocab_size": VOCABULARY,
    },
    "xglm": _PADDED_POSITIONS,
    "xlm-roberta": _PADDED_POSITIONS,
    "xlm-roberta-xl": _PADDED_POSITIONS,
    "xmod": _PADDED_POSITIONS,
    "zamba": {"num_hidden_layers": 4, "layers_block_type": [_LINEAR, "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": [_LINEAR, "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"]},
}
