"""Arguments of titans-pytorch's constructors whose defaults are plain values and which the import reads."""

from __future__ import annotations

TRANSFORMER_NAMES = {
    "ff_mult",
    "num_residual_streams",
    "num_longterm_mem_tokens",
    "num_persist_mem_tokens",
    "sliding_window_attn",
    "neural_mem_gate_attn_output",
    "neural_mem_weight_residual",
    "neural_memory_qkv_receives_diff_views",
    "neural_memory_add_value_residual",
}
MEMORY_NAMES = {
    "default_step_transform_max_lr",
    "per_parameter_lr_modulation",
    "max_mem_layer_modulation",
    "per_head_learned_parameters",
    "attn_pool_chunks",
    "momentum",
    "momentum_order",
    "learned_momentum_combine",
    "learned_combine_include_zeroth",
    "num_kv_per_token",
    "pre_rmsnorm",
    "post_rmsnorm",
    "qk_rmsnorm",
    "spectral_norm_surprises",
    "gated_transition",
    "mem_model_norm_add_residual",
    "store_with_lookahead_value",
}
