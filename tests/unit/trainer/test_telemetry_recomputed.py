"""Under activation checkpointing every layer runs forward twice in a step, and its tokens are counted once."""

from pathlib import Path
from typing import Any

import pytest
from torch.utils.checkpoint import checkpoint

from tests.support.training import exact_columns, run_training, train_config
from trainer.model.block import Block

NUM_STEPS = 4


def test_recomputed_layers_are_counted_once_and_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = train_config(num_steps=NUM_STEPS, loop={"log_every_steps": 2})
    plain = run_training(config, tmp_path / "plain")
    ran: list[bool] = []
    forward = Block.forward

    def counted(self: Block, *arguments: Any) -> Any:
        ran.append(self.training)
        return forward(self, *arguments)

    def recomputed(self: Block, *arguments: Any) -> Any:
        if not self.training:
            return counted(self, *arguments)
        return checkpoint(counted, self, *arguments, use_reentrant=False)

    monkeypatch.setattr(Block, "forward", recomputed)
    run = run_training(config, tmp_path / "recomputed")
    micro_batches = config.loop.global_batch_size // config.loop.micro_batch_size
    assert sum(ran) == 2 * NUM_STEPS * micro_batches * config.model.num_layers, "forward, and again for the backward"
    for kind in ("scalars", "router"):
        assert exact_columns(run.table(kind)) == exact_columns(plain.table(kind)), kind
