"""Tiny models for tests: built in milliseconds, with every part of the real ones."""

from typing import Any

import torch
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.model.build import build_model
from trainer.model.transformer import Transformer

CPU = torch.device("cpu")
META = torch.device("meta")

EVERY_BALANCER = (
    {"kind": "load_balancing_loss", "coefficient": 0.01},
    {"kind": "router_z_loss", "coefficient": 0.001},
    {"kind": "loss_free_bias", "update_rate": 0.001},
)


def model_config(
    *, moe: dict[str, Any] | None = None, attention: dict[str, Any] | None = None, **fields: Any
) -> ModelConfig:
    """Returns a model of 2 layers of width 32 on 64 tokens; dense without `moe`."""
    document: dict[str, Any] = {
        "vocab_size": 64,
        "dim": 32,
        "num_layers": 2,
        "hidden_dim": 48,
        "attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8} | (attention or {}),
        "moe": moe,
    }
    return ModelConfig.model_validate(document | fields)


def moe_fields(**fields: Any) -> dict[str, Any]:
    """Returns 4 experts, 2 per token; `fields` replace or add."""
    return {"num_experts": 4, "top_k": 2, "hidden_dim": 16} | fields


def dense_and_moe_configs() -> dict[str, ModelConfig]:
    """Returns one config per kind of layer stack, by a name for test ids."""
    return {
        "dense": model_config(attention={"qk_norm": True}),
        "local_and_global": model_config(
            num_layers=3,
            attention={"window": 3, "sinks": True, "bias": "all"},
            global_attention={"every": 2, "attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16}},
        ),
        "moe": model_config(moe=moe_fields()),
        "moe_everything": model_config(
            num_layers=3,
            tie_embeddings=False,
            attention={"qk_norm": True},
            moe=moe_fields(
                num_shared_experts=2,
                num_dense_layers=1,
                router={"score": "sigmoid", "scale": 2.5},
                balancing=EVERY_BALANCER,
            ),
        ),
        "moe_structure": model_config(
            num_layers=4,
            activation="geglu",
            scales={"embedding": 4.0, "logits": 0.5, "residual": 0.7},
            moe=moe_fields(
                every=2,
                num_shared_experts=1,
                shared_gate=True,
                activation="clamped_swiglu",
                expert_bias=True,
                output_scale={"init": 2.0},
                router={"bias": True},
            ),
        ),
    }


def tiny_model(config: ModelConfig, *, seed: int = 0, spread: float = 10.0) -> Transformer:
    """Returns a built model whose weights are `spread` times the initial ones, so that no part of it is near zero."""
    model = build_model(config, seed=seed, device=CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter *= spread
    return model


def random_tokens(num_sequences: int, seq_len: int, *, vocab_size: int = 64, seed: int = 0) -> Tensor:
    """Returns int64 tokens_BL."""
    return torch.randint(0, vocab_size, (num_sequences, seq_len), generator=torch.Generator().manual_seed(seed))


def random_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns standard normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
