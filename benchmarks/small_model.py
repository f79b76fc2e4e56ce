"""The model of benchmarks that are about what happens beside the training."""

from typing import Any

SMALL_MODEL: dict[str, Any] = {
    "vocab_size": 1024,
    "dim": 128,
    "num_layers": 2,
    "hidden_dim": 256,
    "attention": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32},
    "moe": {"num_experts": 8, "top_k": 2, "hidden_dim": 128},
}
