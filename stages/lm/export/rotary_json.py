"""What `config.json` says of the families with rotary positions, by the keys of transformers."""

from typing import Any

from ..model.config import ModelConfig

CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM"),
}
"""transformers' `model_type` and class of the families with rotary positions."""


def rotary_json(config: ModelConfig) -> dict[str, Any]:
    """What `config.json` says of a family with rotary positions."""
    kind, name = CLASSES[
        "mistral" if config.arch == "llama" and config.sliding_window else config.arch
    ]
    described: dict[str, Any] = {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": config.width,
        "intermediate_size": config.ff_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
    }
    # transformers 5 reads `rope_parameters`; older ones and other programs, the other two.
    rope = {"rope_type": "default"} | rope_scaling_json(config)
    described["rope_parameters"] = rope | {"rope_theta": config.rope_base}
    described["rope_theta"] = config.rope_base
    if config.rope_scaling:
        described["rope_scaling"] = rope
    if config.sliding_window:
        described["sliding_window"] = config.sliding_window
    if config.family.unrotated_every:
        described["no_rope_layer_interval"] = config.family.unrotated_every
        described["no_rope_layers"] = [int(config.rotated(n)) for n in range(config.layers)]
    if config.arch == "gemma3":
        local = config.family.local_rope_base
        described |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": config.head_size,
            "layer_types": [
                "sliding_attention" if config.window(n) else "full_attention"
                for n in range(config.layers)
            ],
            "rope_local_base_freq": local,
            "rope_parameters": {
                "full_attention": described["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": local},
            },
        }
    return described


def rope_scaling_json(config: ModelConfig) -> dict[str, Any]:
    """The rotary scaling by transformers' keys; empty if there is none."""
    if not config.rope_scaling:
        return {}
    scaling = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if config.rope_scaling != "linear":
        scaling["original_max_position_embeddings"] = config.rope_original_context
    if config.rope_scaling == "llama3":
        scaling |= {"low_freq_factor": config.rope_low, "high_freq_factor": config.rope_high}
    if config.rope_scaling == "yarn":
        scaling |= {"beta_slow": config.rope_low, "beta_fast": config.rope_high}
        scaling["attention_factor"] = config.rope_attention
    return scaling
