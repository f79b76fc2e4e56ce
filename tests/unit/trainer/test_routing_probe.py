"""Probe metrics equal what is counted token by token, and have their bounds and controls where theory says."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.training import STEP_TOKENS, run_training, train_config
from trainer.metrics.catalog import PROBE_SCALARS
from trainer.metrics.routing_probe import (
    changed,
    coactivation,
    largest_coactivation,
    overlap,
    shares_by_label,
    shuffled_specialization,
    specialization,
)
from trainer.probe import MAX_ROUTINGS, thinned_out

NUM_TOKENS, NUM_EXPERTS, TOP_K = 3000, 8, 2


def drawn(seed: int) -> np.ndarray:
    """Every token has 2 of 8 experts, evenly at random."""
    ranks = np.random.default_rng(seed).random((NUM_TOKENS, NUM_EXPERTS)).argsort(axis=1)
    return ranks < TOP_K


def on_first(num_tokens: int = NUM_TOKENS) -> np.ndarray:
    """Every token has experts 0 and 1: total collapse."""
    return np.tile(np.arange(NUM_EXPERTS) < TOP_K, (num_tokens, 1))


def test_overlap_is_the_share_of_common_experts():
    first, second = drawn(0), drawn(1)
    slowly = [len({*np.flatnonzero(a)} & {*np.flatnonzero(b)}) / TOP_K for a, b in zip(first, second, strict=True)]
    assert overlap(first, second) == pytest.approx(np.mean(slowly))
    assert overlap(first, second) == pytest.approx(TOP_K / NUM_EXPERTS, abs=0.02)
    assert overlap(first, first) == 1.0
    assert overlap(np.zeros_like(first), first) == 0.0


def test_changed_first_experts_are_counted_by_token():
    first, second = (np.random.default_rng(seed).integers(0, NUM_EXPERTS, NUM_TOKENS) for seed in (0, 1))
    assert changed(first, second) == pytest.approx(np.mean([a != b for a, b in zip(first, second, strict=True)]))
    assert changed(first, second) == pytest.approx(1 - 1 / NUM_EXPERTS, abs=0.02)
    assert changed(first, first) == 0.0
    assert changed(first, first + 1) == 1.0


def test_coactivation_counts_all_pairs_of_a_token():
    chosen = drawn(0)
    found = coactivation(chosen)
    for i in range(NUM_EXPERTS):
        of_i = [token for token in chosen if token[i]]
        for j in range(NUM_EXPERTS):
            assert found[i, j] == pytest.approx(sum(token[j] for token in of_i) / len(of_i))
    assert largest_coactivation(chosen) == pytest.approx((TOP_K - 1) / (NUM_EXPERTS - 1), abs=0.04)
    assert largest_coactivation(on_first()) == 1.0
    assert largest_coactivation(np.eye(4, dtype=bool)) == 0.0


def test_shares_of_a_label_are_those_of_its_tokens():
    chosen, labels = drawn(0), np.random.default_rng(1).integers(0, 5, NUM_TOKENS)
    found = shares_by_label(chosen, labels)
    for label in range(5):
        own = [token for token, its in zip(chosen, labels, strict=True) if its == label]
        np.testing.assert_allclose(found[label], np.mean(own, axis=0))
    np.testing.assert_allclose(found.sum(axis=1), TOP_K)
    assert specialization(chosen, labels) == pytest.approx(np.mean([row.max() for row in found]))


def test_specialisation_is_one_where_labels_have_their_experts_and_at_collapse_and_chance_in_between():
    labels = np.arange(NUM_TOKENS) % 4
    own = np.zeros((NUM_TOKENS, NUM_EXPERTS), dtype=bool)
    own[np.arange(NUM_TOKENS), 2 * labels] = own[np.arange(NUM_TOKENS), 2 * labels + 1] = True
    assert specialization(own, labels) == 1.0
    assert specialization(on_first(), labels) == 1.0  # which is why the control matters:
    assert shuffled_specialization(on_first(), labels, seed=0) == 1.0
    assert shuffled_specialization(own, labels, seed=0) == pytest.approx(TOP_K / NUM_EXPERTS, abs=0.05)
    assert specialization(drawn(0), labels) == pytest.approx(TOP_K / NUM_EXPERTS, abs=0.05)


def test_rare_labels_are_left_out():
    chosen, labels = on_first(6), np.array([0, 0, 0, 0, 1, 1])
    assert len(shares_by_label(chosen, labels, min_tokens=3)) == 1
    assert np.isnan(specialization(chosen, labels, min_tokens=5))


def test_labels_of_windows_are_permuted_as_wholes():
    """Two windows of 8 tokens with their own experts: either order of the labels gives the same shares."""
    chosen = np.repeat(np.eye(2, dtype=bool), 8, axis=0)
    assert shuffled_specialization(chosen, np.array([0, 1]), seed=3) == 1.0
    assert shuffled_specialization(chosen, np.repeat([0, 1], 8), seed=3) < 1.0


def test_run_records_probes_at_every_evaluation_and_its_saturation(tmp_path: Path):
    config = train_config(num_steps=12, loop={"evaluate_every_tokens": 4 * STEP_TOKENS, "probe_tokens": 256})
    finished = run_training(config, tmp_path)
    table = finished.table("probes")
    assert table["step"].to_pylist() == [0, 0, 4, 4, 8, 8, 12, 12]
    assert table["layer"].to_pylist() == [0, 1] * 4
    values = {name: table[name].to_numpy() for name in PROBE_SCALARS}
    assert np.isnan(values["probe/churn"][:2]).all()
    assert (values["probe/churn"][2:] > 0).all()
    assert (values["probe/churn"][2:] < values["probe/churn_uniform"][2:]).all(), "a router changes less than chance"
    assert np.isnan(values["probe/top1_churn"][:2]).all()
    assert (values["probe/top1_churn"][2:] > 0).all()
    assert values["probe/top1_churn"][2:].mean() < 3 / 4
    np.testing.assert_allclose(values["probe/top1_churn_uniform"], 3 / 4)
    np.testing.assert_allclose(values["probe/specialization_uniform"], 2 / 4)
    np.testing.assert_allclose(values["probe/coactivation_uniform"], 1 / 3)
    for name in ("domain", "vocabulary"):
        assert (values[f"probe/{name}_specialization"] >= 0.5).all()
        assert (values[f"probe/{name}_specialization_shuffled"] >= 0.5).all()
    assert finished.last.summary is not None
    points = finished.last.summary.router_saturation
    assert points is not None
    assert [point.step for point in points] == [0, 4, 8, 12]
    assert points[-1].by_layer == [1.0, 1.0]
    np.testing.assert_allclose(points[-2].by_layer, 1.0 - values["probe/churn"][-2:])
    assert all(0.4 < share < 1.0 for point in points[:-1] for share in point.by_layer), "chance gives 0.5"


def test_resumed_run_probes_alike(tmp_path: Path):
    config = train_config(num_steps=12, loop={"evaluate_every_tokens": 4 * STEP_TOKENS, "probe_tokens": 256})
    whole = run_training(config, tmp_path / "whole")
    stopped = run_training(config, tmp_path / "run", stop_at_tokens=6 * STEP_TOKENS)
    assert stopped.last.checkpoint is not None
    resumed = run_training(config, tmp_path / "run", resume_from=stopped.last.checkpoint.folder)
    for name in ("step", "layer", *PROBE_SCALARS):
        mine, theirs = (finished.table("probes")[name].to_numpy() for finished in (resumed, whole))
        np.testing.assert_array_equal(mine, theirs, err_msg=name)
    assert resumed.last.summary is not None
    assert whole.last.summary is not None
    assert resumed.last.summary.router_saturation == whole.last.summary.router_saturation


def test_dense_model_and_zero_tokens_are_not_probed(tmp_path: Path):
    finished = run_training(train_config(num_steps=2, loop={"probe_tokens": 0}), tmp_path)
    assert not list((tmp_path / "telemetry").glob("probes-*"))
    assert finished.last.summary is not None
    assert finished.last.summary.router_saturation is None


def test_kept_routings_are_few_and_spread_over_the_run():
    kept: list[int] = []
    for step in range(200):
        kept = thinned_out([*kept, step])
        assert len(kept) <= MAX_ROUTINGS
        assert (kept[0], kept[-1]) == (0, step)
        assert kept == sorted(kept)
    assert max(np.diff(kept)) <= 3 * 200 / MAX_ROUTINGS
