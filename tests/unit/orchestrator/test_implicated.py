"""Documents of several trials' spikes: who is named, together with whom, and what chance would have given."""

import itertools
import math

import pytest

from orchestrator.implicated import SpikeStep, SpikingTrial, at_least, implicated_documents, num_places
from orchestrator.store.spiking import data_order, spike_steps
from tests.support.training import train_config


def spike(step: int, *documents: str, chance: float | None = 0.01, batch: int = 8, complete: bool = True) -> SpikeStep:
    return SpikeStep(
        run_id="run",
        step=step,
        metrics=("train/loss",),
        z=9.0,
        size=1.0,
        samples=(batch * (step - 1), batch * step - 1),
        document_chances=dict.fromkeys(documents, chance),
        all_documents=complete,
        num_documents=50,
        text={documents[0]: f"text of {documents[0]}"} if documents else {},
    )


def trial(number: int, *spikes: SpikeStep, order: str = "same", num_steps: int = 100) -> SpikingTrial:
    return SpikingTrial(
        experiment_id="experiment",
        trial_id=f"trial-{number}",
        number=number,
        order=order,
        num_steps=num_steps,
        spikes=spikes,
    )


def test_tail_of_independent_events_is_that_of_all_outcomes():
    chances = [0.1, 0.5, 0.03, 0.9]
    for count in range(6):
        slowly = math.fsum(
            math.prod(chance if happens else 1 - chance for chance, happens in zip(chances, outcome, strict=True))
            for outcome in itertools.product([False, True], repeat=len(chances))
            if sum(outcome) >= count
        )
        assert at_least(count, chances) == pytest.approx(slowly, abs=1e-15)


def test_batches_that_share_a_sample_are_one_place():
    ranges = [("a", (0, 7)), ("a", (4, 19)), ("a", (19, 25)), ("a", (26, 30)), ("b", (0, 7))]
    assert num_places(ranges) == 3
    assert num_places([]) == 0


def test_one_batch_of_a_shared_order_implicates_its_documents_together_and_says_so():
    trials = [trial(number, spike(40, "x", "y")) for number in range(3)] + [trial(3)]
    found = implicated_documents(trials)
    (item,) = found.items
    assert [document.document_id for document in item.documents] == ["x", "y"]
    assert (item.num_trials, item.num_batches, item.same_batch) == (3, 1, True)
    # Each of three trials spikes at one of 100 steps: 100 steps, each met by all three with 1e-6.
    assert item.expected_batches == pytest.approx(100 * 0.01**3)
    assert (found.num_trials, found.num_spiking_trials, found.num_spikes, found.num_orders) == (4, 3, 3, 1)
    assert found.note is not None
    assert "3 of the 3 trials" in found.note
    assert "one batch (samples 312 to 319) that spiked in 3 of 4 trials" in item.summary
    assert item.text == "text of x"


def test_document_of_different_batches_is_told_from_its_neighbours():
    trials = [
        trial(0, spike(40, "bad", "a"), order="0"),
        trial(1, spike(70, "bad", "b"), order="1"),
        trial(2, spike(20, "c"), order="2"),
    ]
    found = implicated_documents(trials)
    (item,) = found.items
    (document,) = item.documents
    assert document.document_id == "bad"
    assert (item.num_trials, item.num_batches, item.same_batch, item.expected_batches) == (2, 2, False, None)
    assert found.note is None
    # One spike in each of three trials, a batch in a hundred touches the document.
    assert document.expected_trials == pytest.approx(0.03)
    assert document.probability == pytest.approx(3 * 0.01**2 * 0.99 + 0.01**3)
    assert document.probability_any == pytest.approx(50 * document.probability)


def test_same_order_at_different_steps_is_no_same_batch():
    (item,) = implicated_documents([trial(0, spike(10, "bad")), trial(1, spike(30, "bad"))]).items
    assert (item.num_batches, item.same_batch) == (2, False)


def test_spikes_of_one_trial_alone_implicate_nothing():
    assert implicated_documents([trial(0, spike(10, "bad"), spike(30, "bad")), trial(1, spike(50, "good"))]).items == ()


def test_threshold_counts_trials_and_order_is_by_them():
    trials = [trial(n, spike(10 + n, "all", *(["two"] if n < 2 else [])), order=str(n)) for n in range(3)]
    assert [item.num_trials for item in implicated_documents(trials).items] == [3, 2]
    assert [item.num_trials for item in implicated_documents(trials, min_trials=3).items] == [3]


def test_chance_that_was_not_recorded_is_unknown_and_cut_batches_are_counted():
    trials = [trial(n, spike(10 + n, "bad", chance=None, complete=False), order=str(n)) for n in range(2)]
    found = implicated_documents(trials)
    (document,) = found.items[0].documents
    assert (document.chance_of_batch, document.probability, document.expected_trials) == (None, None, None)
    assert found.num_truncated == 2
    assert "not recorded" in found.items[0].summary


def test_frequent_document_in_many_spikes_is_what_chance_gives():
    trials = [trial(n, *(spike(s, "common", chance=0.5) for s in (10 + n, 30 + n)), order=str(n)) for n in range(4)]
    (document,) = implicated_documents(trials).items[0].documents
    assert document.expected_trials == pytest.approx(4 * 0.75)
    assert document.probability == pytest.approx(0.5**8), "it is in all of eight different batches"
    assert document.probability_any == pytest.approx(50 * 0.5**8)


def test_trials_that_spiked_at_one_batch_count_once_for_its_documents():
    trials = [trial(n, spike(40, "x")) for n in range(5)] + [trial(5, spike(70, "x")), trial(6, spike(90, "y"))]
    found = implicated_documents(trials)
    assert (found.num_spikes, found.num_batches) == (7, 3)
    (item,) = found.items
    assert (item.num_trials, item.num_batches) == (6, 2)
    assert item.documents[0].probability == pytest.approx(3 * 0.01**2 * 0.99 + 0.01**3)
    assert "in 2 of the 3 different batches that spiked" in item.summary


def event(step: int, metric: str, **fields: object) -> dict[str, object]:
    return {
        "step": step,
        "metric": metric,
        "z": 8.0 if metric == "train/loss" else 20.0,
        "size": 1.0,
        "sample_indices": [8 * (step - 1), 8 * step - 1],
        "document_ids": ["a", "b"],
        **fields,
    }


def test_loss_and_gradient_norm_at_one_step_are_one_spike_and_the_later_run_counts():
    events = [
        ("run-0", event(5, "optimizer/grad_norm")),
        ("run-0", event(5, "train/loss")),
        ("run-1", event(5, "train/loss", document_chances=[0.1, 0.2], num_documents=7, all_documents=False)),
        ("run-1", event(9, "optimizer/grad_norm")),
    ]
    first, second = spike_steps(events)
    assert (first.step, first.metrics, first.z, first.run_id) == (
        5,
        ("train/loss", "optimizer/grad_norm"),
        8.0,
        "run-1",
    )
    assert first.document_chances == {"a": 0.1, "b": 0.2}
    assert (first.num_documents, first.all_documents) == (7, False)
    assert (second.step, second.metrics, second.document_chances) == (
        9,
        ("optimizer/grad_norm",),
        {"a": None, "b": None},
    )


def test_order_of_the_data_is_that_of_weights_tokenizer_length_and_seed():
    def order(**sections: object) -> str:
        return data_order(train_config(**sections).model_dump(mode="json"))  # pyright: ignore[reportArgumentType]

    assert order(optimizer={"lr": 0.1}, loop={"log_every_steps": 1}) == order()
    assert order(data={"mixture": {"speeches": 3, "legal": 3}}) == order()
    for other in ({"seed": 1}, {"data": {"seq_len": 32}}, {"data": {"mixture": {"legal": 1, "speeches": 2}}}):
        assert order(**other) != order()
