"""Estimates: closed forms, ranges, and what they rest on."""

import pytest

from orchestrator.capacity import Capacity, NodeCapacity
from orchestrator.estimate import CPU_FLOPS, TRIAL_START_S, Estimated, Measured, estimate
from orchestrator.search.rungs import rung_tokens
from tests.support.specs import experiment_spec, train_document
from trainer.model.size import flops_per_token, model_size

LAPTOP = Capacity(nodes=(NodeCapacity(cpus=2, gpus=0, memory_gib=4),))
ASHA = {"kind": "asha", "min_tokens": 2048, "reduction_factor": 2}


def in_order(estimated: Estimated) -> bool:
    assert estimated.low is not None
    assert estimated.value is not None
    assert estimated.high is not None
    return estimated.low <= estimated.value <= estimated.high


def test_one_trial_of_the_base_is_its_closed_forms() -> None:
    spec = experiment_spec(space={}, num_trials=1)
    found = estimate(spec, capacity=LAPTOP)
    flops = flops_per_token(spec.base.model, seq_len=64)
    assert found.num_trials == 1
    assert found.parameters == model_size(spec.base.model)
    assert found.tokens.value == 16_384
    assert found.training_flops.value == pytest.approx(16_384 * flops)


def test_baselines_count_beside_the_search() -> None:
    alone = estimate(experiment_spec(num_trials=4), capacity=LAPTOP)
    beside = estimate(experiment_spec(num_trials=4, baselines=[{"name": "base"}]), capacity=LAPTOP)
    assert beside.tokens.value == 5 * 16_384
    assert (alone.num_baselines, beside.num_baselines) == (0, 1)


def test_figures_range_over_the_space() -> None:
    spec = experiment_spec(space={"model.moe.num_experts": {"int": [2, 64]}})
    found = estimate(spec, capacity=LAPTOP)
    assert found.total_parameters.low == model_size(_with_experts(2).model).total
    assert found.total_parameters.high == model_size(_with_experts(64).model).total
    for figure in (found.tokens, found.training_flops, found.peak_memory, found.duration, found.disk):
        assert in_order(figure)


def test_low_end_of_asha_is_what_the_rungs_can_save() -> None:
    spec = experiment_spec(scheduler=ASHA, num_trials=8)
    assert rung_tokens(spec) == (2048, 4096, 8192)
    found = estimate(spec, capacity=LAPTOP)
    # 8 trials to 2048 tokens, 4 to 4096, 2 to 8192, 1 to the end.
    assert found.tokens.low == 8 * 2048 + 4 * 2048 + 2 * 4096 + 1 * 8192
    assert found.tokens.high == 8 * 16_384


def test_time_is_taken_from_trials_that_ran_here() -> None:
    spec = experiment_spec(num_trials=2)
    slow = estimate(spec, capacity=LAPTOP, measured=[Measured(flops_per_token=1e6, tokens_per_s=100.0)])
    fast = estimate(spec, capacity=LAPTOP, measured=[Measured(flops_per_token=1e6, tokens_per_s=200.0)])
    assert slow.duration.value is not None
    assert fast.duration.value is not None
    starting_s = 2 * TRIAL_START_S / 2
    assert slow.duration.value - starting_s == pytest.approx(2 * (fast.duration.value - starting_s))
    assert "the median of 1 trials that ran here" in slow.duration.basis


def test_without_a_measurement_the_guess_is_called_one() -> None:
    found = estimate(experiment_spec(), capacity=LAPTOP)
    assert "a guess of" in found.duration.basis
    assert f"{CPU_FLOPS:.0e}" in found.duration.basis


@pytest.mark.parametrize(
    ("capacity", "asked", "expected", "says"),
    [
        (LAPTOP, None, 2.0, "hold 2"),
        (LAPTOP, 1, 1.0, "max_parallel_trials=1"),
        (LAPTOP, 64, 2.0, "hold 2"),
        (None, None, None, "not known yet"),
        (None, 3, 3.0, "not known yet"),
    ],
)
def test_parallel_trials_are_what_fits_and_what_was_asked(
    capacity: Capacity | None, asked: int | None, expected: float | None, says: str
) -> None:
    found = estimate(experiment_spec(max_parallel_trials=asked), capacity=capacity).max_parallel_trials
    assert found.value == expected
    assert says in found.basis


def test_every_checkpoint_adds_twelve_bytes_a_parameter() -> None:
    loop = {"budget_tokens": 16_384, "global_batch_size": 8, "micro_batch_size": 8}
    plain = experiment_spec(space={}, num_trials=1)
    often = experiment_spec(space={}, num_trials=1, base=train_document(loop=loop | {"checkpoint_every_tokens": 4096}))
    difference = _disk(often) - _disk(plain)
    assert difference * 2**30 == pytest.approx(4 * 12 * model_size(plain.base.model).total)


def _disk(spec: object) -> float:
    value = estimate(spec, capacity=LAPTOP).disk.value  # type: ignore[arg-type]
    assert value is not None
    return value


def _with_experts(num_experts: int):
    document = train_document()
    document["model"]["moe"]["num_experts"] = num_experts
    return experiment_spec(base=document).base
