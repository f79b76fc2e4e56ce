"""Spikes planted in real training are found: each of them, at its step, with its documents, and little else."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import trainer.training
from orchestrator.implicated import SpikingTrial, implicated_documents
from orchestrator.store.spiking import data_order, spike_steps
from tests.support.training import Finished, run_training, train_config
from trainer.config import TrainConfig
from trainer.config.data import TOKENIZER_VOCAB_SIZES
from trainer.data.mixture import Batch, Mixture
from trainer.data.shards import default_cache_dir
from trainer.metrics.spikes import ONLINE_MIN_WINDOW, spike_score
from trainer.schedules.build import build_schedule
from trainer.training_data import open_data

NUM_STEPS = 305
SEEDS = (0, 1)
PLANTED = {0: frozenset({150, 300}), 1: frozenset({150, 289})}
"""By seed, which has its own order of the data."""
SHARED = "GFDL-1.3#2"
"""The one document that is read both at a planted step of seed 0, the first, and at one of seed 1, the last."""


class Run(NamedTuple):
    finished: Finished
    spikes: list[dict[str, Any]]

    def of(self, metric: str) -> set[int]:
        return {spike["step"] for spike in self.spikes if spike["metric"] == metric}

    def losses(self) -> list[float]:
        return self.finished.table("scalars")["train/loss"].to_pylist()


def config(seed: int, *, num_steps: int = NUM_STEPS) -> TrainConfig:
    return train_config(
        num_steps=num_steps,
        seed=seed,
        optimizer={"lr": 0.003},
        schedule={"kind": "constant"},
        loop={"checkpoint_every_tokens": 100 * 128},
    )


def run(folder: Path, seed: int, *, num_steps: int = NUM_STEPS) -> Run:
    finished = run_training(config(seed, num_steps=num_steps), folder)
    path = folder / "spikes.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return Run(finished, [json.loads(line) for line in lines])


def poisoned(honest: Any) -> Any:
    """Batches whose tokens are random at the planted steps: what a damaged shard would give."""

    def batch(self: Mixture, step: int, *arguments: Any, **named: Any) -> Batch:
        found = honest(self, step, *arguments, **named)
        if step + 1 not in PLANTED[self.seed]:
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
    assert [each.of("train/loss") for each in damaged] == [set(PLANTED[seed]) for seed in SEEDS]
    assert clean.of("train/loss") == set()


def test_gradient_norm_finds_them_too_with_few_others(damaged: list[Run]):
    """Recall 4 of 4; a gradient norm has a long tail, so up to as many others."""
    found = [each.of("optimizer/grad_norm") for each in damaged]
    assert all(found_in >= PLANTED[seed] for seed, found_in in zip(SEEDS, found, strict=True))
    assert sum(map(len, found)) <= 2 * sum(map(len, PLANTED.values()))


def test_score_of_tables_tells_a_damaged_series_from_a_clean_one(damaged: list[Run], clean: Run):
    """With a window as long as the online one: 1000 steps would reach back to where the loss still falls."""
    assert spike_score(clean.losses(), window=128).num_spikes == 0
    assert [spike_score(each.losses(), window=128).num_spikes for each in damaged] == [
        len(PLANTED[seed]) for seed in SEEDS
    ]


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


@pytest.fixture(scope="module")
def mixtures() -> list[Mixture]:
    return [open_data(config(seed), cache_folder=default_cache_dir()).mixture for seed in SEEDS]


def documents_of_step(mixture: Mixture, step: int) -> set[str]:
    """The documents of the batch of 8 samples, sample by sample."""
    return {name for index in range(8 * (step - 1), 8 * step) for name in mixture.window(index).document_ids}


def test_event_names_the_documents_of_the_poisoned_batch(damaged: list[Run], mixtures: list[Mixture]):
    for each, mixture in zip(damaged, mixtures, strict=True):
        for event in each.spikes:
            assert event["all_documents"]
            assert set(event["document_ids"]) == documents_of_step(mixture, event["step"])
            assert len(event["document_chances"]) == len(event["document_ids"])
            assert all(0 < chance < 1 for chance in event["document_chances"])


def test_documents_of_both_runs_spikes_are_implicated_and_no_others(damaged: list[Run], mixtures: list[Mixture]):
    trials = [trial(seed, damaged[seed]) for seed in SEEDS]
    found = implicated_documents(trials)
    batches = [
        {step: documents_of_step(mixture, step) for step in sorted({spike["step"] for spike in each.spikes})}
        for each, mixture in zip(damaged, mixtures, strict=True)
    ]
    expected = set.intersection(*(set().union(*of_run.values()) for of_run in batches))
    assert SHARED in expected
    assert {document.document_id for item in found.items for document in item.documents} == expected
    assert found.num_orders == 2
    assert found.note is None
    for item in found.items:
        assert not item.same_batch, "different seeds read different batches"
        for document in item.documents:
            named = {(t.number, s.step) for t, s in item.spikes}
            assert named == {
                (seed, step) for seed in SEEDS for step, names in batches[seed].items() if document.document_id in names
            }


def test_runs_of_one_order_implicate_batches_and_not_documents(damaged: list[Run], mixtures: list[Mixture]):
    found = implicated_documents([trial(0, damaged[0]), trial(1, damaged[0])])
    assert found.num_orders == 1
    assert found.note is not None
    poisoned_batch = next(
        item for item in found.items if item.same_batch and {spike.step for _, spike in item.spikes} == {150}
    )
    once = documents_of_step(mixtures[0], 150) - set().union(
        *(documents_of_step(mixtures[0], spike["step"]) for spike in damaged[0].spikes if spike["step"] != 150)
    )
    assert {document.document_id for document in poisoned_batch.documents} == once
    assert poisoned_batch.expected_batches == pytest.approx(
        (NUM_STEPS - ONLINE_MIN_WINDOW) * (found.num_spikes / 2 / (NUM_STEPS - ONLINE_MIN_WINDOW)) ** 2
    )


def trial(number: int, of: Run) -> SpikingTrial:
    """A run as the store tells of it."""
    recorded = json.loads((of.finished.folder / "config.json").read_text())["config"]
    return SpikingTrial(
        experiment_id="experiment",
        trial_id=f"trial-{number}",
        number=number,
        order=data_order(recorded),
        num_steps=NUM_STEPS - ONLINE_MIN_WINDOW,
        spikes=spike_steps([("run", spike) for spike in of.spikes]),
    )


def test_kick_of_the_learning_rate_spikes_in_the_step_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def kicked(*arguments: Any, **named: Any) -> Any:
        schedule = build_schedule(*arguments, **named)
        return lambda step: schedule(step) * (200.0 if step + 1 == 150 else 1.0)

    monkeypatch.setattr(trainer.training, "build_schedule", kicked)
    found = run(tmp_path, SEEDS[0], num_steps=155)
    assert 151 in found.of("train/loss") & found.of("optimizer/grad_norm")
    (event,) = (spike for spike in found.spikes if (spike["step"], spike["metric"]) == (151, "train/loss"))
    assert event["lr"] == pytest.approx(0.003), "the rate of the spiking step itself; the kick came before"
