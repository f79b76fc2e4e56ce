"""A configuration at a width that trains in milliseconds, its structure kept."""

from typing import Any

from trainer.config import TrainConfig


def reduced(config: TrainConfig, *, num_steps: int = 2) -> TrainConfig:
    """Returns the same kinds, options and layer pattern at width 32, few layers, 8 experts and `num_steps` steps."""
    document = config.model_dump(mode="json")
    model = document["model"]
    model |= {"vocab_size": 1024, "dim": 32, "hidden_dim": 48, "num_layers": _num_layers(config)}
    model["attention"] = _attention(model["attention"])
    if model["global_attention"] is not None:
        model["global_attention"]["attention"] = _attention(model["global_attention"]["attention"])
    moe = model["moe"]
    if moe is not None:
        num_experts = min(moe["num_experts"], 8)
        moe |= {"num_experts": num_experts, "top_k": min(moe["top_k"], num_experts // 2), "hidden_dim": 16}
    document["data"] |= {"tokenizer": "bpe-1024", "seq_len": 16, "evaluation_tokens": 64, "mixture": {"legal": 1}}
    document["loop"] |= {
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "budget_tokens": num_steps * 4 * 16,
        "log_every_steps": 1,
    }
    return TrainConfig.model_validate(document)


def _num_layers(config: TrainConfig) -> int:
    moe, attention = config.model.moe, config.model.global_attention
    period = max(1 if moe is None else moe.every, 1 if attention is None else attention.every)
    return (0 if moe is None else moe.num_dense_layers) + 2 * period


def _attention(fields: dict[str, Any]) -> dict[str, Any]:
    small = {
        "num_heads": 4,
        "num_kv_heads": 4 if fields.get("num_kv_heads") == fields["num_heads"] else 2,
        "head_dim": 8,
        "window": fields.get("window") and 6,
        "kv_lora_rank": 12,
        "q_lora_rank": fields.get("q_lora_rank") and 10,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    }
    return fields | {name: value for name, value in small.items() if name in fields}
