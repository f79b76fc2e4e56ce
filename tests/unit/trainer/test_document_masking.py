"""`data.document_masking`: training and evaluation keep the documents of a window apart, and nothing else changes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.models import model_config, moe_fields, tiny_model
from tests.support.token_shards import token_shard
from tests.support.training import STEP_TOKENS, exact_columns, run_training, train_config
from trainer.config import TrainConfig
from trainer.config.precision import Float32Config
from trainer.data.evaluation import EvaluationSet, evaluation_windows
from trainer.data.shards import default_cache_dir
from trainer.evaluation import evaluate
from trainer.model.transformer import Transformer
from trainer.precision.build import build_precision
from trainer.training_data import open_data
from trainer.world import World


def masked_config(**sections: object) -> TrainConfig:
    """Returns a run whose windows of 64 tokens hold a border of two documents about once a step."""
    data = {"document_masking": True, "mixture": {"legal": 1, "speeches": 1}, "seq_len": 64}
    return train_config(num_steps=6 * 4, data=data, **sections)


def losses(folder: Path, config: TrainConfig) -> list[float]:
    return run_training(config, folder).table("scalars")["train/loss"].to_pylist()


def test_masking_changes_what_is_trained_from_the_first_border_on(tmp_path: Path):
    config = masked_config()
    plain = config.model_copy(update={"data": config.data.model_copy(update={"document_masking": False})})
    mixture = open_data(config, cache_folder=default_cache_dir()).mixture
    has_border = [bool(mixture.batch(step, 8).documents_BL.any()) for step in range(config.num_steps)]
    first = has_border.index(True)
    masked_losses, plain_losses = losses(tmp_path / "masked", config), losses(tmp_path / "plain", plain)
    assert masked_losses[:first] == pytest.approx(plain_losses[:first], rel=1e-5)
    assert abs(masked_losses[first] - plain_losses[first]) > 1e-6


def test_masked_run_resumes_to_the_last_bit(tmp_path: Path):
    config = masked_config()
    whole = run_training(config, tmp_path / "whole")
    stopped = run_training(config, tmp_path / "stopped", stop_at_tokens=3 * 4 * STEP_TOKENS)
    assert stopped.last.kind == "stopped"
    resumed = run_training(config, tmp_path / "stopped", resume_from=stopped.last.checkpoint.folder)
    assert exact_columns(resumed.table("scalars")).equals(exact_columns(whole.table("scalars")))
    for name, weight in whole.weights().items():
        assert torch.equal(resumed.weights()[name], weight), name


def small_set(*, document_masking: bool) -> EvaluationSet:
    # Tokens: end-of-text at 0, 6, 9 and 20; everything else bytes.
    shard = token_shard("books", ["\x00\x01\x02\x03\x04", "\x05\x06", "\x07\x08" * 5])
    return evaluation_windows(shard, 20, 20, document_masking=document_masking)


def nats(model: Transformer, held_out: EvaluationSet) -> float:
    precision = build_precision(Float32Config(), torch.device("cpu"))
    figures = evaluate(model, [held_out], batch_size=4, precision=precision, world=World())
    return figures["books"].loss


def alone(model: Transformer, tokens_L: Tensor, targets_L: Tensor) -> float:
    logits_LV = model(tokens_L.unsqueeze(0)).logits_BLV[0]
    return torch.nn.functional.cross_entropy(logits_LV, targets_L, reduction="sum").item()


def test_evaluation_is_that_of_each_document_alone():
    model = tiny_model(model_config(vocab_size=1024, moe=moe_fields()))
    masked, plain = small_set(document_masking=True), small_set(document_masking=False)
    tokens_L, targets_L = (torch.from_numpy(rows[0].copy()) for rows in (masked.inputs_NL, masked.targets_NL))
    with torch.no_grad():
        total = sum(alone(model, tokens_L[first:end], targets_L[first:end]) for first, end in ((0, 6), (6, 9), (9, 20)))
    assert nats(model, masked) == pytest.approx(total / 20, rel=1e-5)
    assert abs(nats(model, plain) - total / 20) > 1e-3
