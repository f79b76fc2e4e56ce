"""Spikes planted in real training are found: each of them, at its step, with its documents, and little else."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import trainer.training
from tests.support.training import Finished, run_training, train_config
from trainer.config.data import TOKENIZER_VOCAB_SIZES
from trainer.data.mixture import Batch, Mixture
from trainer.metrics.spikes import spike_score
from trainer.schedules.build import build_schedule

NUM_STEPS = 305
PLANTED = frozenset({150, 300})
SEEDS = (0, 1)


class Run(NamedTuple):
    finished: Finished
    spikes: list[dict[str, Any]]

    def of(self, metric: str) -> set[int]:
        return {spike["step"] for spike in self.spikes if spike["metric"] == metric}

    def losses(self) -> list[float]:
        return self.finished.table("scalars")["train/loss"].to_pylist()


def run(folder: Path, seed: int, *, num_steps: int = NUM_STEPS) -> Run:
    config = train_config(
        num_steps=num_steps,
        seed=seed,
        optimizer={"lr": 0.003},
        schedule={"kind": "constant"},
        loop={"checkpoint_every_tokens": 100 * 128},
    )
    finished = run_training(config, folder)
    path = folder / "spikes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return Run(finished, [json.loads(line) for line in lines])


def poisoned(honest: Any) -> Any:
    """Batches whose tokens are random at the planted steps: what a damaged shard would give."""

    def batch(self: Mixture, step: int, *arguments: Any, **named: Any) -> Batch:
        found = honest(self, step, *arguments, **named)
        if step + 1 not in PLANTED:
            return found
        draw = np.random.default_rng(step)
        size, shape = TOKENIZER_VOCAB_SIZES["bpe-1024"], found.inputs_BL.shape
        return found._replace(inputs_BL=draw.integers(0, size, shape), targets_BL=draw.integers(0, size, shape))

    return batch


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("clean"), SEEDS[0])


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixture, "batch", poisoned(Mixture.batch))
        return [run(tmp_path_factory.mktemp(f"seed-{seed}"), seed) for seed in SEEDS]


def test_every_poisoned_batch_and_nothing_else_is_a_spike_of_the_loss(damaged: list[Run], clean: Run):
    """Recall 4 of 4, precision 4 of 4."""
    assert [each.of("train/loss") for each in damaged] == [set(PLANTED)] * len(SEEDS)
    assert clean.of("train/loss") == set()


def test_gradient_norm_finds_them_too_with_few_others(damaged: list[Run]):
    """Recall 4 of 4; a gradient norm has a long tail, so up to as many others."""
    found = [each.of("optimizer/grad_norm") for each in damaged]
    assert all(found_in >= PLANTED for found_in in found)
    assert sum(map(len, found)) <= 2 * len(PLANTED) * len(SEEDS)


def test_score_of_tables_tells_a_damaged_series_from_a_clean_one(damaged: list[Run], clean: Run):
    """With a window as long as the online one: 1000 steps would reach back to where the loss still falls."""
    assert spike_score(clean.losses(), window=128).num_spikes == 0
    assert [spike_score(each.losses(), window=128).num_spikes for each in damaged] == [len(PLANTED)] * len(SEEDS)


def test_event_holds_what_explains_it(damaged: list[Run]):
    for each in damaged:
        (event,) = (spike for spike in each.spikes if (spike["step"], spike["metric"]) == (150, "train/loss"))
        assert event["size"] > 1.0
        assert event["z"] > 6
        assert event["recovered_step"] == 151
        assert event["recovery_steps"] == 1
        assert (event["peak_step"], event["peak_value"]) == (150, event["value"])
        assert event["checkpoint_step"] == 100
        assert event["lr"] == pytest.approx(0.003)
        parts = np.array([event["grad_norms"][role] for role in ("router", "expert", "dense", "embedding")])
        assert np.sqrt((parts**2).sum()) == pytest.approx(event["grad_norm"], rel=1e-5)
        for when in ("router_before", "router_peak", "router_after"):
            assert [state["layer"] for state in event[when]] == [0, 1]
        assert event["sample_indices"] == [149 * 8, 150 * 8 - 1]
        shown = [name for preview in event["previews"] for name in preview["document_ids"]]
        assert set(shown) <= set(event["document_ids"])
        assert all(preview["text"] for preview in event["previews"])


def test_kick_of_the_learning_rate_spikes_in_the_step_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def kicked(*arguments: Any, **named: Any) -> Any:
        schedule = build_schedule(*arguments, **named)
        return lambda step: schedule(step) * (60.0 if step + 1 == 150 else 1.0)

    monkeypatch.setattr(trainer.training, "build_schedule", kicked)
    found = run(tmp_path, SEEDS[0], num_steps=155)
    assert 151 in found.of("train/loss") & found.of("optimizer/grad_norm")
    (event,) = (spike for spike in found.spikes if (spike["step"], spike["metric"]) == (151, "train/loss"))
    assert event["lr"] == pytest.approx(0.003), "the rate of the spiking step itself; the kick came before"
