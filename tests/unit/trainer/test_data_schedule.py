"""The share of each domain is kept at every prefix, not only in the long run."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.schedule import MAX_PERIOD, DomainSchedule

WEIGHTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), min_size=1)


@given(weights=WEIGHTS)
def test_deviation_stays_within_tijdemans_bound_at_every_prefix(weights: dict[str, int]):
    schedule = DomainSchedule({domain: float(weight) for domain, weight in weights.items()})
    total = sum(weights.values())
    bound = 1 - 1 / (2 * len(weights) - 2) if len(weights) > 1 else 0.0
    counts = Counter()
    for index in range(2 * schedule.period):
        domain, _ = schedule.locate(index)
        counts[schedule.domains[domain]] += 1
        for name, weight in weights.items():
            assert abs(counts[name] - weight / total * (index + 1)) <= bound + 1e-9


@settings(max_examples=40)
@given(weights=st.lists(st.floats(0.1, 100.0), min_size=2, max_size=6), start=st.integers(0, 10**9))
def test_uneven_weights_are_kept_within_one_sample_anywhere(weights: list[float], start: int):
    """Weights without a small common denominator are rounded first; to the rounded ones the promise is the same."""
    schedule = DomainSchedule({str(number): weight for number, weight in enumerate(weights)})
    for name, share in schedule.shares.items():
        assert share == pytest.approx(weights[int(name)] / sum(weights), abs=1 / MAX_PERIOD)
    # How many samples of its domain come before sample n tells the count at any prefix without walking there.
    for index in range(start, start + 40):
        domain, before = schedule.locate(index)
        assert abs(before - schedule.shares[schedule.domains[domain]] * index) < 1 + 1e-6


@given(weights=WEIGHTS)
def test_samples_of_a_domain_are_numbered_without_gaps(weights: dict[str, int]):
    schedule = DomainSchedule({domain: float(weight) for domain, weight in weights.items()})
    seen = Counter()
    for index in range(2 * schedule.period + 3):
        domain, before = schedule.locate(index)
        assert before == seen[domain]
        seen[domain] += 1


def test_equal_weights_take_turns():
    schedule = DomainSchedule({"a": 1.0, "b": 1.0, "c": 1.0})
    assert [schedule.locate(index)[0] for index in range(6)] == [0, 1, 2, 0, 1, 2]


def test_decimal_weights_are_exact():
    assert DomainSchedule({"a": 0.1, "b": 0.2, "c": 0.7}).period == 10


def test_order_of_the_weights_does_not_matter():
    one, other = DomainSchedule({"a": 1.0, "b": 3.0}), DomainSchedule({"b": 3.0, "a": 1.0})
    assert [one.locate(index) for index in range(20)] == [other.locate(index) for index in range(20)]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weight_that_is_no_positive_number_is_refused(weight: float):
    with pytest.raises(ValueError, match="weight of b"):
        DomainSchedule({"a": 1.0, "b": weight})


def test_weight_too_small_to_be_scheduled_is_refused():
    with pytest.raises(ValueError, match="raise its weight"):
        DomainSchedule({"a": 1.0, "b": 1e-7})


def test_negative_sample_index_is_refused():
    with pytest.raises(ValueError, match="negative"):
        DomainSchedule({"a": 1.0}).locate(-1)
