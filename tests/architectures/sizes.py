"""The sizes of tiny models: what a configuration gets where its class has a field of the name.

Sizes of different kinds differ, so that no test passes because two dimensions happen to agree.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 211


def _all(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


#: What a language model's configuration gets where it has a field of the name.
TEXT: dict[str, Any] = {
    **_all(VOCABULARY, "vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"),
    # width
    **_all(48, "hidden_size", "d_model", "n_embd", "emb_dim", "embed_dim", "embedding_dim", "word_embed_proj_dim"),
    "hidden_size_global": 48,
    "lru_width": 44,
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
    "moe_hidden_size": 32,
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
    **_all(11, "index_n_heads", "indexer_n_heads"),  # of fewer, so many scores are 0 that ties decide
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
    **_all(20, "router_hidden_size", "ple_embed_dim"),
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
    # positions in a picture
    **_all(32, "max_2d_position_embeddings", "seq_len", "max_num_patches"),
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
    **_all(28, "max_img_size", "max_image_size"),
    **_all(16, "output_channels", "nemo_conv_channels", "downsample_hidden_size", "img_max_token_num"),
    **_all(16, "num_patches", "mm_posemb_size", "position_embedding_size"),
    **_all(32, "mm_embed_dim", "ext_pw_out_channel", "depthwise_separable_out_channel"),
    **_all(48, "output_dim", "output_proj_dims", "adapter_out_dim"),
    "audio_embed_dim": 22,
    "post_conv_in_channels": 16,
    "post_conv_mid_channels": 20,
    "post_conv_out_channels": 24,
}
