"""What architectures call the parts of a block: the tables that tv's rules read.

A family that uses other names costs a line here. A name that no table has is no reason to refuse a model: the part
keeps its own name, and what the instrument claims of it is proved on the live model.
"""

from __future__ import annotations

import re

#: What computes a component, by the name of its class without the model's own, then by the name it has in the block.
KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE), component)
    for pattern, component in (
        (r"delta|lightning|linear_?att|gated_?delta|kda|retention", "linear_attn"),
        (r"mamba|^mixer2?$|^ssm", "ssm"),
        (r"short_?conv|^conv$", "conv"),
        (r"recurrent|rg_?lru|lstm|temporal_block", "rnn"),
        (r"attention|attn", "attn"),
        (r"mlp|moe|^ffn?w?$|ffn|feed_?forward|expert|sparse", "mlp"),
    )
)
#: Classes whose names say something else.
CLASSES = {"RwkvSelfAttention": "rnn"}
#: Matrices that lie in the block itself and make up a component.
LOOSE = {"per_layer_input_gate": "per_layer", "per_layer_projection": "per_layer"}
#: Leaf names of attention's matrices. A fused leaf lists its slices in the order in which they are stored.
ATTENTION = {
    "q_proj": ("q",),
    "k_proj": ("k",),
    "v_proj": ("v",),
    "query": ("q",),
    "key": ("k",),
    "value": ("v",),
    "o_proj": ("o",),
    "out_proj": ("o",),
    "c_proj": ("o",),
    "dense": ("o",),
    "wo": ("o",),
    "Wo": ("o",),
    "Wq": ("q",),
    "Wk": ("k",),
    "Wv": ("v",),
    "q_a_proj": ("q_a",),
    "q_b_proj": ("q_b",),
    "kv_a_proj_with_mqa": ("kv_a",),
    "kv_b_proj": ("kv_b",),
    "qkv_proj": ("q", "k", "v"),
    "c_attn": ("q", "k", "v"),
    "query_key_value": ("q", "k", "v"),
    "Wqkv": ("q", "k", "v"),
}
#: Leaf names of an MLP's matrices.
MLP = {
    "gate_proj": ("gate",),
    "up_proj": ("up",),
    "down_proj": ("down",),
    "gate_up_proj": ("gate", "up"),
    "input_linear": ("gate", "up"),
    "output_linear": ("down",),
    "w1": ("gate",),
    "w3": ("up",),
    "w2": ("down",),
    "c_fc": ("up",),
    "c_proj": ("down",),
    "fc1": ("up",),
    "fc2": ("down",),
    "fc_in": ("up",),
    "fc_out": ("down",),
    "ff_proj": ("up",),
    "ff_out": ("down",),
    "dense_h_to_4h": ("up",),
    "dense_4h_to_h": ("down",),
    "proj_up_gate": ("gate",),
    "proj_up": ("up",),
    "proj_down": ("down",),
    "lin_1": ("up",),
    "lin_2": ("down",),
}
#: The same where the MLP is a sequence: matrix, activation, matrix.
SEQUENCE = {"0": ("up",), "2": ("down",)}
#: Matrices of attention whose rows are cut by heads, besides q, k and v.
UP_PROJECTIONS = ("q_b", "kv_b")
#: Fused leaves that are stored head by head: q, k, v of head 0, then of head 1, …
INTERLEAVED = ("query_key_value",)
#: Fused matrices that are stored in parts, each with slices in this order.
PARTED = {"CodeGenAttention": (4, ("q", "v", "k"))}
#: What attention has that subtracts the second half of its heads from the first: z holds one of two heads each.
DIFFERENTIAL = "lambda_q1"
#: What other mixers call the number of their heads.
MIXER_HEADS = ("num_v_heads", "num_heads", "n_heads", "num_attention_heads", "n_mamba_heads")
#: What an output projection of a mixer is called, whose input is z.
OUT = ("o", "out_proj")
#: Norms inside attention.
INNER_NORMS = {
    "q_norm": "q_norm",
    "q_layernorm": "q_norm",
    "query_layernorm": "q_norm",
    "k_norm": "k_norm",
    "k_layernorm": "k_norm",
    "key_layernorm": "k_norm",
    "q_a_layernorm": "q_a_norm",
    "kv_a_layernorm": "kv_a_norm",
}
#: Norms that a mixer, or the whole block, reads through.
PRE_NORMS = (
    "input_layernorm",
    "attention_layernorm",
    "ln_1",
    "ln1",
    "ln_attn",
    "norm_1",
    "operator_norm",
    "temporal_pre_norm",
    "self_attn_layer_norm",
    "attn_norm",
    "attention_norm",
    "norm",
    "norm_mlstm",
)
#: Norms that the MLP reads through.
MLP_NORMS = (
    "pre_feedforward_layernorm",
    "pre_mlp_layernorm",
    "post_attention_layernorm",
    "feedforward_layernorm",
    "pre_ff_layernorm",
    "ln_2",
    "ln2",
    "ln_mlp",
    "norm_2",
    "ffn_norm",
    "mlp_norm",
    "channel_pre_norm",
    "final_layer_norm",
    "norm_ffn",
)
#: Pairs of norms between the components and the residual stream (sandwich norms), after attention and after the MLP.
POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),
    ("post_self_attn_layernorm", "post_mlp_layernorm"),
    ("post_attention_layernorm", "post_mlp_layernorm"),
)
FINAL_NORMS = (
    "norm",
    "ln_f",
    "final_layer_norm",
    "final_layernorm",
    "norm_f",
    "embedding_norm",
    "final_norm",
    "ln_out",
    "out_norm",
    "layer_norm",
    "layernorm",
    "LayerNorm",
    "ln",
    "output_layernorm",
    "hyper_connection_mixer",
)
#: What an activation module is called, or its place in a sequence.
ACTIVATION = re.compile(r"act|act_fn|activation_fn|activation|1")
#: Execution order inside a block; a matrix of its own name comes before the output projection, or before the gate.
ORDER = (
    ("norm", "q_a", "q_a_norm", "q_b", "kv_a", "kv_a_norm", "kv_b", "q", "q_gate", "k", "v", "q_norm", "k_norm"),
    ("o", "out_proj", "attn_post_norm"),
    ("mlp_norm", "router", "shared_gate", "shared_up", "shared_down", "shared_router"),
    ("gate", "up", "down", "mlp_post_norm"),
)
#: Embeddings of positions, added to those of tokens.
POSITIONS = ("wpe", "embed_positions", "position_embeddings")
