"""What a spike policy asks of a step follows from the spikes alone, and is what the config says."""

import json

import pytest
from pydantic import ValidationError

from tests.support.training import train_config
from trainer.config.spike_policies import LowerLearningRateConfig, RecordSpikesConfig, RewindConfig, SkipSpikesConfig
from trainer.spike_policy import SpikePolicy

LOSS = ("train/loss",)


def lowering() -> SpikePolicy:
    return SpikePolicy(LowerLearningRateConfig(factor=0.5, num_steps=10), log_every_steps=5)


@pytest.mark.parametrize("step", [11, 12, 15])
def test_rate_is_lowered_from_the_end_of_the_logging_interval(step: int):
    policy = lowering()
    policy.spiked(step, LOSS)
    assert [each for each in range(1, 40) if policy.lr_factor(each) != 1.0] == list(range(16, 26))
    assert policy.lr_factor(20) == 0.5


def test_second_spike_begins_the_steps_anew_without_a_gap_or_a_second_factor():
    policy = lowering()
    policy.spiked(12, LOSS)
    policy.spiked(22, LOSS)
    lowered = {each: policy.lr_factor(each) for each in range(1, 60) if policy.lr_factor(each) != 1.0}
    assert list(lowered) == list(range(16, 36))
    assert set(lowered.values()) == {0.5}


def test_spikes_of_the_other_metric_and_other_policies_change_nothing():
    policy = lowering()
    policy.spiked(12, ("optimizer/grad_norm",))
    assert policy.lr_factor(16) == 1.0
    for config in (RecordSpikesConfig(), SkipSpikesConfig()):
        policy = SpikePolicy(config, log_every_steps=5)
        policy.spiked(12, LOSS)
        assert (policy.lr_factor(16), policy.batch_number(16), policy.rewind_from) == (1.0, 16, None)


def rewinding(**fields: int) -> SpikePolicy:
    return SpikePolicy(RewindConfig(num_skipped_steps=3, **fields), log_every_steps=5)


def go_back(policy: SpikePolicy, *, spike: int, to_step: int, saved: dict) -> None:
    policy.spiked(spike, LOSS)
    before = policy.copy()
    policy.restore(saved)
    policy.rewound(before, to_step=to_step)


def test_after_going_back_steps_train_on_batches_that_were_not_seen():
    policy = rewinding()
    assert [policy.batch_number(step) for step in (1, 100)] == [1, 100]
    go_back(policy, spike=27, to_step=20, saved=policy.state())
    # Batches 21 to 27, that of the spike, and 3 more are left out.
    assert [policy.batch_number(step) for step in (20, 21, 22)] == [20, 31, 32]
    assert policy.rewind_from is None


def test_going_back_twice_to_one_checkpoint_leaves_out_the_batches_of_both():
    policy = rewinding()
    saved = policy.state()
    go_back(policy, spike=27, to_step=20, saved=saved)
    go_back(policy, spike=25, to_step=20, saved=saved)  # trained on batch 35
    assert [policy.batch_number(step) for step in (20, 21)] == [20, 39]
    assert policy.num_rewinds == 2


def test_going_back_further_on_adds_to_what_was_left_out():
    policy = rewinding()
    go_back(policy, spike=27, to_step=20, saved=policy.state())
    saved = json.loads(json.dumps(policy.state()))
    go_back(policy, spike=45, to_step=40, saved=saved)  # batch 55; 3 more
    assert [policy.batch_number(step) for step in (20, 21, 40, 41)] == [20, 31, 50, 59]


def test_number_of_times_is_bounded():
    policy = rewinding(max_rewinds=1)
    go_back(policy, spike=27, to_step=20, saved=policy.state())
    policy.spiked(45, LOSS)
    assert policy.rewind_from is None


def test_only_the_first_spike_is_gone_back_for():
    policy = rewinding()
    policy.spiked(27, LOSS)
    policy.spiked(29, LOSS)
    assert policy.rewind_from == 27


def test_short_form_is_the_policy_skip():
    assert train_config(loop={"skip_spikes": {"window": 99}}).loop.spike_policy == SkipSpikesConfig(window=99)
    assert train_config().loop.spike_policy == RecordSpikesConfig()


@pytest.mark.parametrize(
    ("loop", "problem"),
    [
        ({"on_spike": {"kind": "rewind"}}, "checkpoint_every_tokens is null"),
        ({"on_spike": {"kind": "lower_lr"}, "skip_spikes": {}}, "both given"),
        ({"on_spike": {"kind": "skip", "min_window": 200}}, "no step would ever be skipped"),
    ],
)
def test_policies_that_cannot_work_are_refused(loop: dict, problem: str):
    with pytest.raises(ValidationError, match=problem):
        train_config(loop=loop)
