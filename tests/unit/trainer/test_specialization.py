"""Mutual information of domain and expert has the values theory gives, and its control shows the chance level."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.metrics.specialization import domain_information, mutual_information, shuffled_domain_information


def test_experts_of_their_own_domain_tell_everything():
    assert mutual_information(np.diag([7, 7, 7, 7])) == pytest.approx(2.0)


def test_experts_that_treat_all_domains_alike_tell_nothing():
    assert mutual_information(np.outer([1, 1, 1], [5, 3, 2])) == pytest.approx(0.0, abs=1e-12)


def test_worked_example_in_bits():
    # p = [[.4, .1], [.1, .4]]: I = 1 - H(0.8, 0.2) = 1 + .8 log2 .8 + .2 log2 .2
    expected = 1 + 0.8 * math.log2(0.8) + 0.2 * math.log2(0.2)
    assert mutual_information(np.array([[4, 1], [1, 4]])) == pytest.approx(expected)


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=2, max_size=5))
def test_information_is_bounded_and_does_not_depend_on_numbering(rows: list[list[int]]):
    counts_DE = np.array(rows)
    if counts_DE.sum() == 0:
        return
    information = mutual_information(counts_DE)
    assert 0 <= information <= min(math.log2(len(rows)), math.log2(3)) + 1e-9
    assert mutual_information(counts_DE[::-1, ::-1]) == pytest.approx(information, abs=1e-12)


def test_layers_are_measured_apart():
    domain_of_W = np.array([0, 0, 1, 1])
    told = np.array([[8, 0], [8, 0], [0, 8], [0, 8]])
    untold = np.full((4, 2), 4)
    assert domain_information(np.stack([told, untold], axis=1), domain_of_W) == pytest.approx([1.0, 0.0])


def test_shuffled_labels_tell_far_less_but_not_nothing():
    generator = np.random.default_rng(0)
    domain_of_W = np.repeat(np.arange(4), 32)
    preference_DE = generator.dirichlet(np.full(8, 0.3), size=4)
    counts_WLE = np.stack([generator.multinomial(128, preference_DE[domain]) for domain in domain_of_W])[:, None]
    trained = domain_information(counts_WLE, domain_of_W)[0]
    shuffled = shuffled_domain_information(counts_WLE, domain_of_W, seed=0)[0]
    assert 0 < shuffled < trained / 5


def test_shuffling_whole_windows_keeps_the_likeness_inside_them():
    # Every window uses one expert: even without any domain effect a finite sample looks informative, and only a control
    # that moves whole windows shows that.
    generator = np.random.default_rng(0)
    domain_of_W = np.repeat(np.arange(4), 8)
    counts_WLE = (np.eye(8, dtype=np.int64)[generator.integers(0, 8, 32)] * 128)[:, None]
    shuffled = shuffled_domain_information(counts_WLE, domain_of_W, seed=0)[0]
    bias_of_independent_tokens = 3 * 7 / (2 * 32 * 128 * math.log(2))
    assert shuffled > 50 * bias_of_independent_tokens
