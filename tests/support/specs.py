"""Builders of specs: small, valid, and changed by keyword."""

from typing import Any

from orchestrator.spec import ExperimentSpec


def train_document(**sections: Any) -> dict[str, Any]:
    """A small MoE TrainConfig as plain JSON; `sections` replace top-level fields."""
    document: dict[str, Any] = {
        "model": {
            "vocab_size": 1024,
            "dim": 32,
            "num_layers": 2,
            "hidden_dim": 64,
            "attention": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
            "moe": {
                "num_experts": 4,
                "top_k": 2,
                "hidden_dim": 32,
                "balancing": [{"kind": "load_balancing_loss", "coefficient": 0.01}],
            },
        },
        "data": {"tokenizer": "bpe-1024", "seq_len": 64, "evaluation_tokens": 512},
        "optimizer": {"lr": 0.003},
        "loop": {"budget_tokens": 16_384, "global_batch_size": 8, "micro_batch_size": 8},
    }
    return document | sections


def experiment_document(**fields: Any) -> dict[str, Any]:
    """A valid experiment document over the learning rate; `fields` replace or add top-level fields."""
    document: dict[str, Any] = {
        "name": "lr sweep",
        "base": train_document(),
        "space": {"optimizer.lr": {"float": [1e-4, 1e-2], "log": True}},
        "num_trials": 8,
    }
    return document | fields


def experiment_spec(**fields: Any) -> ExperimentSpec:
    """The parsed spec of `experiment_document`."""
    return ExperimentSpec.model_validate(experiment_document(**fields))
