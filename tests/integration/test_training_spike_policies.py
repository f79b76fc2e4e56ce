"""What a policy does about a spike in real training, and that stopping and resuming a run changes nothing of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.training import STEP_TOKENS, Finished, exact_columns, run_training, train_config
from trainer.config import TrainConfig
from trainer.config.data import TOKENIZER_VOCAB_SIZES
from trainer.data.mixture import Batch, Mixture

NUM_STEPS = 158
POISONED = 148
"""Number of the batch that is random tokens."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Mixture.batch

    def batch(self: Mixture, step: int, *arguments: Any, **named: Any) -> Batch:
        found = honest(self, step, *arguments, **named)
        if step + 1 != POISONED:
            return found
        size, shape = TOKENIZER_VOCAB_SIZES["bpe-1024"], found.inputs_BL.shape
        draw = np.random.default_rng(step)
        return found._replace(inputs_BL=draw.integers(0, size, shape), targets_BL=draw.integers(0, size, shape))

    monkeypatch.setattr(Mixture, "batch", batch)


def config(on_spike: dict[str, Any]) -> TrainConfig:
    return train_config(
        num_steps=NUM_STEPS,
        optimizer={"lr": 0.003},
        schedule={"kind": "constant"},
        loop={
            "on_spike": on_spike,
            "checkpoint_every_tokens": 70 * STEP_TOKENS,
            "log_every_steps": 5,
            "micro_batch_size": 8,
        },
    )


REWIND = {"kind": "rewind", "num_skipped_steps": 2}
LOWER = {"kind": "lower_lr", "factor": 0.25, "num_steps": 7}


def spikes(finished: Finished) -> list[dict[str, Any]]:
    lines = (finished.folder / "spikes.jsonl").read_text().splitlines()
    left_out = {"time_ms", "checkpoint_step"}
    return [{name: value for name, value in json.loads(line).items() if name not in left_out} for line in lines]


def assert_same(found: Finished, expected: Finished) -> None:
    assert (found.last.kind, found.last.step) == ("finished", NUM_STEPS)
    for mine, theirs in ((found.weights(), expected.weights()), (found.optimizer(), expected.optimizer())):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    for kind in ("scalars", "router"):
        assert exact_columns(found.table(kind)).equals(exact_columns(expected.table(kind))), kind
    assert spikes(found) == spikes(expected)
    assert found.last.summary is not None
    assert expected.last.summary is not None
    assert found.last.summary.num_spikes == expected.last.summary.num_spikes


def test_rewind_goes_back_and_leaves_the_batches_out(tmp_path: Path):
    recorded = run_training(config({"kind": "record"}), tmp_path / "recorded")
    assert any(spike["step"] == POISONED and spike["metric"] == "train/loss" for spike in spikes(recorded)), (
        "the batch has to spike"
    )
    rewound = run_training(config(REWIND), tmp_path / "rewound")
    (event,) = (spike for spike in spikes(rewound) if spike["rewound_to"] and spike["metric"] == "train/loss")
    assert (event["step"], event["rewound_to"], event["rewind"]) == (POISONED, 140, 1)
    table = rewound.table("scalars")
    assert table["step"].to_pylist() == list(range(1, NUM_STEPS + 1))
    losses, before = table["train/loss"].to_numpy(), recorded.table("scalars")["train/loss"].to_numpy()
    np.testing.assert_array_equal(losses[:140], before[:140])
    assert losses[140:].max() < before[POISONED - 1] - 1.0
    assert losses[140] != before[140], "the first step after it is on another batch already"


@pytest.mark.parametrize("on_spike", [REWIND, LOWER], ids=["rewind", "lower_lr"])
def test_interrupted_run_does_the_same(tmp_path: Path, on_spike: dict[str, Any]):
    whole = run_training(config(on_spike), tmp_path / "whole")
    for stop_step in (POISONED, POISONED + 4):
        folder = tmp_path / str(stop_step)
        stopped = run_training(config(on_spike), folder, stop_at_tokens=stop_step * STEP_TOKENS)
        assert stopped.last.checkpoint is not None
        assert_same(run_training(config(on_spike), folder, resume_from=stopped.last.checkpoint.folder), whole)


def test_lower_rate_lasts_its_steps(tmp_path: Path):
    found = run_training(config(LOWER), tmp_path)
    rates = found.table("scalars")["optimizer/lr"].to_numpy()
    lowered = [step for step in range(20, NUM_STEPS + 1) if rates[step - 1] < 0.003]  # the first steps warm up
    assert lowered == list(range(151, 158)), "from the end of the logging interval that the spike lies in"
    np.testing.assert_allclose(rates[150], 0.25 * 0.003)


def test_spike_before_the_first_checkpoint_is_only_recorded(tmp_path: Path):
    late = config(REWIND).model_copy(
        update={"loop": config(REWIND).loop.model_copy(update={"checkpoint_every_tokens": 152 * STEP_TOKENS})}
    )
    found = run_training(late, tmp_path)
    assert (found.last.kind, found.last.step) == ("finished", NUM_STEPS)
    assert all(spike["rewound_to"] is None for spike in spikes(found))
