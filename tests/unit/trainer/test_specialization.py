"""Mutual information of domain and expert has the values theory gives, and its control shows the chance level."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import random_tokens, tiny_model
from tests.support.training import train_config
from trainer.data.evaluation import EvaluationSet
from trainer.metrics.specialization import domain_information, mutual_information, shuffled_domain_information
from trainer.specialization import measure_specialization


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


def test_no_tokens_at_all_tell_nothing():
    assert mutual_information(np.zeros((3, 4), dtype=np.int64)) == 0.0


def test_experts_that_choose_among_the_tokens_of_all_domains_tell_them_apart():
    # Within a sequence every expert takes as many tokens as any other: counted that way they would tell nothing.
    moe = {"num_experts": 4, "top_k": 1, "hidden_dim": 16, "router": {"kind": "expert_choice"}}
    config = train_config(model={"moe": moe})
    model = tiny_model(config.model)
    # Each domain has a vocabulary of its own.
    sets = [
        EvaluationSet(
            domain=f"domain-{seed}",
            tokens=random_tokens(8, 17, vocab_size=8, seed=seed).numpy() + 100 * seed,
            num_bytes=100,
        )
        for seed in range(2)
    ]
    information = measure_specialization(config, model, sets)
    assert information is not None
    assert max(information["trained"]) > 0.1
    assert min(information["trained"]) > 0
    assert model.training


def test_order_of_the_windows_is_no_part_of_what_causal_routers_tell():
    config = train_config()
    model = tiny_model(config.model)
    one, other = (
        EvaluationSet(domain=f"{seed}", tokens=random_tokens(8, 17, seed=seed).numpy(), num_bytes=100)
        for seed in range(2)
    )
    straight = measure_specialization(config, model, [one, other])
    swapped = measure_specialization(config, model, [other, one])
    assert straight is not None
    assert swapped is not None
    assert straight["trained"] == pytest.approx(swapped["trained"])
