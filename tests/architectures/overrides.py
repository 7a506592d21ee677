"""What single types need besides the sizes that all get, and the types that no tiny model shows."""

from __future__ import annotations

from typing import Any

from tests.architectures.sizes import VOCABULARY

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
#: Published configurations give it, although the class has no field of the name.
_HEAD_DIM = {"head_dim": 16}
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
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": _BIGBIRD,
    "bigbird_pegasus": _BIGBIRD,
    "camembert": _PADDED_POSITIONS,
    "chameleon": {"vocabulary_map": {"<image>": 200, "IMGIMGBA": 199}, "vq_config": _VQ},
    "blt": {
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_hash_byte_group_vocab": 50,
        "encoder_config": {"hidden_size": 48, "head_dim": 12, "hidden_size_global": 48},
    },
    "cohere2_moe": {"mlp_layer_types": ["dense", "sparse"]},
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
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [20, 32]},
    "deepseek_v2": _GROUPS | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": _GROUPS,
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "dots1": _HEAD_DIM | {"n_shared_experts": 1},
    "dots3_note_text": {
        "head_dim": 20,
        "swa_num_attention_heads": 3,
        "swa_num_key_value_heads": 3,
        "swa_q_lora_rank": 26,
        "swa_kv_lora_rank": 22,
        "swa_head_dim": 22,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 14,
    },
    "dots3_note": {"vision_config": {"adapter_in_dim": 32}, "audio_config": {"adapter_input_size": 32}},
    "emu3": {
        "vocabulary_map": {"<image>": 200, "<|extra_200|>": 199, "<|visual token 000000|>": 198},
        "vq_config": _VQ | {"codebook_size": 16},
    },
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [24, 22],
        "rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]},
    },
    "evolla": {
        "aligner_num_add_layers": 1,
        "resampler_depth": 1,
        "resampler_dim_head": 8,
        "resampler_heads": 2,
        "resampler_num_latents": 4,
    },
    "exaone4": _HEAD_DIM,
    "exaone_moe": _HEAD_DIM,
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
        "vision_config": {},
        "audio_config": {"subsampling_conv_channels": [8, 4]},
    },
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"vision_config": {}, "audio_config": {}},
    "gemma4_unified_text": {"global_head_dim": 24},
    "glm4_moe": _HEAD_DIM,
    "glm4v_moe_text": _HEAD_DIM
    | {"rope_parameters": _ROPE | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}},
    "glm4v_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "glm5_next_text": {"qk_rope_head_dim": 0, "head_dim": 0, "index_kpool": 2},
    "glm_ocr_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "glm_moe_dsa": {"indexer_types": ["full", "shared"]},
    "granite4_vision": {
        "vision_config": {"hidden_size": 64},  # its queries have a head for every 64
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1],
    },
    "granitemoehybrid": {"layer_types": [_LINEAR, _FULL]},
    "helium": {"head_dim": 12},
    "hunyuan_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2, 2]}},
    "idefics2": {
        "perceiver_config": {
            "resampler_depth": 1,
            "resampler_n_latents": 4,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
        }
    },
    "inkling_text": {"mlp_layer_types": ["dense", "sparse"]},
    "jamba": {"num_hidden_layers": 3, "attn_layer_period": 3, "attn_layer_offset": 2},
    "janus": {"vq_config": _VQ | {"num_embeddings": 16, "num_patches": 2, "image_token_embed_dim": 32}},
    "kosmos_2_5_text_model": _PADDED_POSITIONS,
    "kosmos_2_text_model": _PADDED_POSITIONS,
    "laguna": {"layer_types": [_FULL, _SLIDING], "num_attention_heads_per_layer": [4, 6]},
    "lfm2": {"layer_types": ["conv", _FULL], "block_multiple_of": 8},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", _FULL, "conv"]},
    "llama4_vision_model": {
        "intermediate_size": 128,  # four pixels of its width
        "projector_input_dim": 40,
        "projector_output_dim": 40,
        "vision_output_dim": 40,
    },
    "llama4_text": {
        "layer_types": ["chunked_attention", _FULL],
        "no_rope_layers": [1, 0],
        "moe_layers": [1],
        "num_experts_per_tok": 1,
        "intermediate_size": 24,
    },
    "longcat_flash": {"zero_expert_num": 3},
    "mamba2": {"num_heads": 6},
    "mellum": {"layer_types": [_FULL, _SLIDING], "mlp_layer_types": ["dense", "sparse"]},
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
    "minimax_m3_vl_text": {
        "layer_types": [_FULL, "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_n_heads": 2,
        "index_block_size": 2,
        "index_topk_blocks": 2,
    },
    "mllama_text_model": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    "mllama_vision_model": {"num_global_layers": 1, "intermediate_layers_indices": [0], "vision_output_dim": 64},
    "molmo2": {
        "vision_config": {"image_size": [28, 28]},
        "adapter_config": {"vision_feature_layer": [0], "text_hidden_size": 48},
    },
    "molmo2_text": {"additional_vocab_size": 4},
    "muse_spark_audio": {"num_hidden_layers": 2, "patch_sizes": [4, 2], "hidden_sizes": [8, 16], "depths": [1, 1]},
    "muse_spark_text": {"mlp_layer_types": ["dense", "sparse"]},
    "nemotron_h_omni": {"vision_hidden_size": 32, "vision_config": {"video_temporal_patch_size": 2}},
    "paddleocr_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [4, 2, 2]}},
    "prophetnet": _PADDED_POSITIONS,
    "qwen2_5_omni_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 192},
    "qwen2_5_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "qwen2_vl_text": {"rope_parameters": _ROPE | {"mrope_section": [2, 2, 2]}},
    "qwen3_moe": _HEAD_DIM,
    "qwen3_omni_moe_text": _HEAD_DIM,
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
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "hash_seed": 0, "num_buckets": 2},
    "roberta": _PADDED_POSITIONS,
    "roberta-prelayernorm": _PADDED_POSITIONS,
    "roc_bert": {
        "pronunciation_embed_dim": 20,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 22,
        "shape_vocab_size": VOCABULARY,
    },
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [20, 32]},
    "xlm": {"causal": True},
    "xglm": _PADDED_POSITIONS,
    "xlm-roberta": _PADDED_POSITIONS,
    "xlm-roberta-xl": _PADDED_POSITIONS,
    "xmod": _PADDED_POSITIONS | {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": [_LINEAR, "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": [_LINEAR, "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"]},
}

_TIMM = "its vision tower is a model of the package timm"
_DRAFT = "a draft model: it has no keys and values of its own and reads those of the model it drafts for"
#: Types of which no model can be built here, and why.
NOT_BUILT: dict[str, str] = {
    "fast_vlm": _TIMM,
    "gemma3n": _TIMM,
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "perception_lm": _TIMM,
}
_IMAGE = "its forward pass demands an image"
_ENCODER = "an encoder-decoder: its logits are those of decoder_input_ids, not of input_ids"
#: Types that are built, but whose forward pass does not turn a text into logits at its positions, and why.
NO_TEXT: dict[str, str] = {
    "blip": _IMAGE,
    "blip-2": _IMAGE,
    "diffusion_gemma": "a diffusion model: its logits are those of a random canvas after the text",
    "florence2": _ENCODER,
    "idefics": _IMAGE,
    "instructblip": _IMAGE,
    "instructblipvideo": _IMAGE,
    "kosmos-2": _IMAGE,
    "musicgen": "its input_ids are those of four audio codebooks",
    "musicgen_melody": "its input_ids are those of four audio codebooks",
    "pi0": "its forward pass demands the state of a robot and gives actions",
    "pix2struct": _IMAGE,
    "pp_formulanet": _IMAGE,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "vision-encoder-decoder": _IMAGE,
}
