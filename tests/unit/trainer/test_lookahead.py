"""The look-ahead probe measures what it says: one trained model, routed over chunks of several sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.support.models import CPU, random_tokens, tiny_model
from tests.support.training import run_training, train_config
from trainer.cli import main
from trainer.config import TrainConfig
from trainer.config.run import LookaheadProbe
from trainer.data.evaluation import EvaluationSet
from trainer.evaluation import ALL, evaluate
from trainer.lookahead import chunk_sizes, measure_lookahead
from trainer.model.transformer import Transformer
from trainer.precision.build import build_precision
from trainer.world import World

SETS = tuple(
    EvaluationSet(
        domain=f"domain-{seed}", tokens=random_tokens(6, 17, vocab_size=1024, seed=seed).numpy(), num_bytes=100
    )
    for seed in range(2)
)
"""Two corpora of 6 windows of 16 positions: 3 whole micro-batches of 4 windows."""


def config_with(router: dict[str, Any] | None) -> TrainConfig:
    moe = None if router is None else {"num_experts": 4, "top_k": 2, "hidden_dim": 16, "router": router}
    return train_config(model={"moe": moe})


def probed(config: TrainConfig, model: Transformer, sets: tuple[EvaluationSet, ...] = SETS) -> LookaheadProbe | None:
    precision = build_precision(config.precision, CPU)
    return measure_lookahead(config, model, sets, micro_batch_size=4, precision=precision)


def held_out_loss(config: TrainConfig, model: Transformer) -> float:
    precision = build_precision(config.precision, CPU)
    return evaluate(model, SETS, batch_size=4, precision=precision, world=World(device=CPU))[ALL].loss


@pytest.mark.parametrize(
    ("batch_tokens", "seq_len", "share", "expected"),
    [
        (64, 16, 0.5, (64, 16, 4)),  # an expert would take half a token of each one
        (64, 64, 0.25, (64, 16, 4)),  # a micro-batch of one sequence
        (4096, 1024, 8 / 64, (4096, 1024, 256, 64, 16)),
        (40, 10, 0.5, (40, 10)),  # 10 has no quarter
        (256, 64, 1 / 512, (256,)),
        (8, 8, 1.0, (8, 2)),
    ],
)
def test_chunks_shrink_to_quarters_as_long_as_experts_find_a_token(
    batch_tokens: int, seq_len: int, share: float, expected: tuple[int, ...]
) -> None:
    assert chunk_sizes(batch_tokens, seq_len, share=share) == expected


@pytest.mark.parametrize("router", [None, {"kind": "top_k"}, {"kind": "hash"}])
def test_causal_models_are_not_probed(router: dict[str, Any] | None) -> None:
    config = config_with(router)
    assert probed(config, tiny_model(config.model)) is None


def test_chunks_of_a_sequence_have_the_loss_of_an_evaluation_that_looks_ahead() -> None:
    config = config_with({"kind": "expert_choice"})
    model = tiny_model(config.model)
    probe = probed(config, model)
    assert [routed.chunk_size for routed in probe.by_chunk_size] == [64, 16, 4]
    assert probe.by_chunk_size[1].loss == pytest.approx(held_out_loss(config, model), rel=1e-6)
    assert all(routed.experts_per_token == 2.0 for routed in probe.by_chunk_size)
    assert len({round(routed.loss, 4) for routed in probe.by_chunk_size}) == 3
    assert probe.causal is None
    assert probe.predictor_accuracy is None
    assert model.training


@pytest.mark.parametrize("router", [{"kind": "expert_choice", "predictor": True}, {"kind": "sinkhorn"}])
def test_causal_figure_is_that_of_the_evaluation(router: dict[str, Any]) -> None:
    config = config_with(router)
    model = tiny_model(config.model)
    probe = probed(config, model)
    assert probe.causal.chunk_size is None
    assert probe.causal.loss == pytest.approx(held_out_loss(config, model), rel=1e-6)


def test_largest_chunk_has_the_loss_of_training() -> None:
    config = config_with({"kind": "expert_choice"})
    model = tiny_model(config.model)
    tokens_BL = torch.from_numpy(np.stack([each.tokens[:2] for each in SETS], axis=1).reshape(4, 17))
    first_four = tuple(
        EvaluationSet(domain=each.domain, tokens=each.tokens[:2], num_bytes=each.num_bytes) for each in SETS
    )
    with torch.no_grad():
        in_training = model(tokens_BL[:, :-1], tokens_BL[:, 1:]).loss.item()
    assert probed(config, model, first_four).by_chunk_size[0].loss == pytest.approx(in_training, rel=1e-6)


def test_accuracy_of_a_predictor_that_is_always_wrong_or_right_about_an_expert() -> None:
    config = config_with({"kind": "expert_choice", "predictor": True})
    model = tiny_model(config.model)
    for layer, bias in zip(model.moe_layers(), (-1e6, 1e6), strict=True):
        layer.router.predictor_bias.data.fill_(bias)
    # Half of the pairs are taken: who says no, or yes, to all is right about half.
    assert probed(config, model).predictor_accuracy == [0.5, 0.5]
    model.moe_layers()[0].router.predictor_weight.data.copy_(model.moe_layers()[0].router.weight * 1e4)
    model.moe_layers()[0].router.predictor_bias.data.zero_()
    right, _ = probed(config, model).predictor_accuracy
    assert right > 0.6


@pytest.mark.parametrize("scope", ["micro_batch", "sequence"])
def test_run_reports_its_probe(tmp_path: Path, scope: str) -> None:
    config = train_config(
        num_steps=2,
        model={
            "moe": {
                "num_experts": 4,
                "top_k": 2,
                "hidden_dim": 16,
                "router": {"kind": "expert_choice", "scope": scope, "predictor": True},
            }
        },
    )
    summary = run_training(config, tmp_path).last.summary
    assert summary.lookahead.trained_chunk_size == (64 if scope == "micro_batch" else 16)
    assert [routed.chunk_size for routed in summary.lookahead.by_chunk_size] == [64, 16, 4]
    assert len(summary.lookahead.predictor_accuracy) == 2
    assert LookaheadProbe.model_validate_json(summary.lookahead.model_dump_json()) == summary.lookahead
    assert all(value > 0 for value in summary.domain_information["trained"])


def test_table_at_the_end_shows_the_probe_and_warns(tmp_path: Path) -> None:
    config = train_config(
        num_steps=2,
        model={"moe": {"num_experts": 4, "top_k": 2, "hidden_dim": 16, "router": {"kind": "expert_choice"}}},
    )
    (tmp_path / "train.json").write_text(config.model_dump_json())
    done = CliRunner().invoke(
        main, ["train", str(tmp_path / "train.json"), "--out", str(tmp_path / "run"), "--threads=1"]
    )
    assert done.exit_code == 0, done.output
    assert "64 (as trained)" in done.output
    assert "in training the router saw later tokens" in done.output
