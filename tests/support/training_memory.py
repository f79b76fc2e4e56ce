"""What the forward pass of a training step keeps, measured."""

from typing import Any

import torch
from torch import Tensor

from tests.support.models import CPU, random_tokens
from trainer.config.train import TrainConfig
from trainer.model.build import build_model
from trainer.precision.build import build_precision


def train_config(
    *,
    precision: str = "fp32",
    moe: dict[str, Any] | None = None,
    attention: dict[str, Any] | None = None,
    seq_len: int = 32,
    document_masking: bool = False,
    **fields: Any,
) -> TrainConfig:
    """Returns a model of 3 layers of width 64 on micro-batches of 4 sequences; `fields` are those of the loop."""
    document = {
        "model": {
            "vocab_size": 1024,
            "dim": 64,
            "num_layers": 3,
            "hidden_dim": 160,
            "attention": attention or {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "qk_norm": moe is None},
            "moe": moe,
        },
        "data": {"seq_len": seq_len, "tokenizer": "bpe-1024", "document_masking": document_masking},
        "optimizer": {"lr": 1e-3},
        "precision": {"kind": precision},
        "loop": {"budget_tokens": 1000, "global_batch_size": 4, "micro_batch_size": 4} | fields,
    }
    return TrainConfig.model_validate(document)


def bytes_kept(config: TrainConfig) -> int:
    """Returns the bytes the forward pass of a micro-batch keeps for the backward pass, parameters excepted."""
    model = build_model(config.model, seed=0, device=CPU)
    precision = build_precision(config.precision, CPU)
    precision.apply_to(model)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # holding the tensors keeps their addresses from being used twice

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in parameters:
            kept.setdefault(address, tensor)
        return tensor

    tokens_BL = random_tokens(config.loop.micro_batch_size, config.data.seq_len, vocab_size=1024)
    # Documents of 10 positions: what is kept does not depend on where they end.
    documents_BL = torch.arange(config.data.seq_len).div(10, rounding_mode="floor").expand_as(tokens_BL)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        precision.autocast(),
    ):
        model(tokens_BL, tokens_BL, documents_BL if config.data.document_masking else None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
