"""The comparison of an experiment's trials."""

import dataclasses
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from orchestrator.search.caveats import rank_correlation
from orchestrator.search.rank import compare
from orchestrator.states import Cause, TrialState
from orchestrator.store.records import TrialRecord
from tests.support.records import rung_record, trial_record
from tests.support.specs import experiment_spec, train_document

SPEC = experiment_spec(baselines=[{"name": "base"}])
SUMMARY = {
    "initial_bits_per_byte": {"all": 3.0, "books": 3.5},
    "bits_per_byte": {"all": 2.0, "books": 2.5},
}


def sweep() -> list[TrialRecord]:
    """A baseline, three completed trials, two pruned ones, and one of each that did not train to an end."""
    return [
        trial_record(SPEC, 0, None, objective=2.0, summary=SUMMARY),
        trial_record(SPEC, 1, {"optimizer.lr": 0.001}, objective=2.2),
        trial_record(SPEC, 2, {"optimizer.lr": 0.002}, objective=1.8),
        trial_record(SPEC, 3, {"optimizer.lr": 0.003}, objective=2.0),
        trial_record(SPEC, 4, {"optimizer.lr": 0.004}, state=TrialState.PRUNED, objective=1.0, objective_tokens=1024),
        trial_record(SPEC, 5, {"optimizer.lr": 0.005}, state=TrialState.PRUNED, objective=3.0, objective_tokens=3072),
        trial_record(SPEC, 6, {"optimizer.lr": 0.006}, state=TrialState.FAILED, cause=Cause.DIVERGED),
        trial_record(SPEC, 7, {"optimizer.lr": 0.007}, state=TrialState.RUNNING),
    ]


def test_completed_trials_are_ranked_and_pruned_ones_listed_after_them_by_how_far_they_came() -> None:
    rows = compare(SPEC, sweep()).rows
    assert [(row.number, row.rank) for row in rows] == [
        (2, 1),
        (0, 2),
        (3, 3),
        (1, 4),
        (5, None),
        (4, None),
        (7, None),
        (6, None),
    ]
    assert [row.objective_tokens for row in rows[4:6]] == [3072, 1024]


def test_order_of_the_rows_plays_no_part() -> None:
    trials = sweep()
    assert compare(SPEC, random.Random(1).sample(trials, len(trials))) == compare(SPEC, trials)


def test_higher_is_better_where_it_is_to_be_maximised() -> None:
    spec = experiment_spec(objective={"direction": "maximize"})
    trials = [trial_record(spec, number, {"optimizer.lr": 0.001}, objective=float(number)) for number in range(3)]
    assert [row.number for row in compare(spec, trials).rows] == [2, 1, 0]


def test_differences_are_to_each_baseline_and_not_said_of_pruned_trials() -> None:
    rows = {row.number: row for row in compare(SPEC, sweep()).rows}
    (difference,) = rows[2].differences
    assert difference.baseline_label == "base"
    assert difference.value == pytest.approx(-0.2)
    assert difference.within_noise is None
    assert rows[0].differences == rows[4].differences == ()


def test_one_seed_means_that_the_noise_is_not_known_and_it_says_so() -> None:
    comparison = compare(SPEC, sweep())
    assert comparison.noise is None
    assert any("noise between seeds is not known" in caveat for caveat in comparison.caveats)


def test_replicas_give_the_noise_and_say_which_differences_it_explains() -> None:
    spec = experiment_spec(
        space={"optimizer.lr": {"choice": [0.001, 0.002]}, "seed": {"choice": [1, 2]}}, baselines=[{"name": "base"}]
    )
    points = [(0.001, 1, 2.0), (0.001, 2, 2.1), (0.002, 1, 1.0), (0.002, 2, 1.1)]
    trials = [trial_record(spec, 0, None, objective=2.1)] + [
        trial_record(spec, number, {"optimizer.lr": rate, "seed": seed}, objective=value)
        for number, (rate, seed, value) in enumerate(points, start=1)
    ]
    comparison = compare(spec, trials)
    assert comparison.noise is not None
    # Both pairs have variance 0.1^2 / 2.
    assert comparison.noise.standard_deviation == pytest.approx((0.01 / 2) ** 0.5)
    assert (comparison.noise.num_groups, comparison.noise.num_trials) == (2, 4)
    within = {row.number: row.differences[0].within_noise for row in comparison.rows if row.differences}
    assert within == {1: True, 2: True, 3: False, 4: False}
    assert not any("noise between seeds is not known" in caveat for caveat in comparison.caveats)


def test_contract_says_what_is_equal_and_what_is_not() -> None:
    assert compare(SPEC, sweep()).contract.startswith("equal training tokens (16,384); equal active parameters (")
    spec = experiment_spec(space={"model.moe.top_k": {"choice": [1, 2]}})
    trials = [trial_record(spec, number, {"model.moe.top_k": number + 1}, objective=1.0) for number in range(2)]
    assert "active parameters differ (" in compare(spec, trials).contract


def test_table_of_nothing_says_so() -> None:
    comparison = compare(SPEC, [])
    assert comparison.rows == ()
    assert comparison.contract.startswith("nothing to compare yet")


def test_caveats_name_what_was_left_out() -> None:
    caveats = " ".join(compare(SPEC, sweep()).caveats)
    for words in (
        "1 of 8 trials have not ended",
        "2 trials were stopped early",
        "1 trials failed",
        "includes that tuning",
    ):
        assert words in caveats


def test_domains_are_all_first_and_scores_come_from_the_summary() -> None:
    comparison = compare(SPEC, sweep())
    assert comparison.domains[0] == "all"
    baseline = next(row for row in comparison.rows if row.number == 0)
    scores = {score.domain: (score.initial, score.final) for score in baseline.domains}
    assert scores["books"] == (3.5, 2.5)
    assert scores["legal"] == (None, None)


def test_infeasible_trial_without_a_config_has_a_row() -> None:
    trial = trial_record(SPEC, 1, {"optimizer.lr": 0.001}, state=TrialState.INFEASIBLE, config=None)
    (row,) = compare(SPEC, [trial]).rows
    assert row.total_parameters is None


def test_comparison_is_plain_json() -> None:
    text = json.dumps(dataclasses.asdict(compare(SPEC, sweep())), allow_nan=False)
    assert json.loads(text)["rows"][0]["number"] == 2


@pytest.mark.parametrize(
    ("kind", "at_rung", "says"),
    [
        (
            "asha",
            [8, 1, 7, 2, 6, 3, 5, 4],
            "rank correlation -0.19 at rung 0. Better ones may have been stopped there; hyperband",
        ),
        ("hyperband", [8, 1, 7, 2, 6, 3, 5, 4], "no scheduler or a later first rung"),
        ("asha", [1, 2, 4, 3, 5, 8, 7, 6], None),
        ("asha", [8, 1, 7, 2, 6, 3, 5], None),  # too few to say
        ("asha", [1, 1, 1, 1, 1, 1, 1, 1], None),
        ("patience", [8, 1, 7, 2, 6, 3, 5, 4], None),  # nobody is compared with others there
    ],
)
def test_rungs_whose_order_says_nothing_of_the_end_are_a_caveat(
    kind: str, at_rung: list[int], says: str | None
) -> None:
    scheduler = {"kind": kind, "min_tokens": 1024} | ({"interval_tokens": 1024} if kind == "patience" else {})
    spec = experiment_spec(scheduler=scheduler)
    trials = [
        trial_record(
            spec, number, {"optimizer.lr": 0.001}, objective=float(number), rungs=(rung_record(number, float(value)),)
        )
        for number, value in enumerate(at_rung)
    ]
    caveats = "\n".join(compare(spec, trials).caveats)
    if says is None:
        assert "rank correlation" not in caveats
    else:
        assert says in caveats


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_rank_correlation_is_spearmans(pairs: list[tuple[float, float]]) -> None:
    found = rank_correlation(pairs)
    if any(len({pair[side] for pair in pairs}) == 1 for side in (0, 1)):
        assert found == 1
    else:
        assert found == pytest.approx(float(spearmanr(pairs)[0]), abs=1e-9)  # type: ignore[arg-type]


def test_router_that_sees_later_tokens_in_training_is_a_caveat() -> None:
    routers = {"options": {"sinkhorn": {"kind": "sinkhorn"}, "top_k": {"kind": "top_k"}}}
    spec = experiment_spec(space={"model.moe.router": routers})
    for chosen, expected in (("sinkhorn", True), ("top_k", False)):
        comparison = compare(spec, [trial_record(spec, 0, {"model.moe.router": chosen}, objective=1.0)])
        assert any("the sinkhorn router chooses" in caveat for caveat in comparison.caveats) == expected


def test_capacity_that_depends_on_later_tokens_is_a_caveat() -> None:
    base = train_document()
    base["model"]["moe"]["capacity"] = {"factor": 1.25}
    for spec, expected in ((experiment_spec(base=base), True), (SPEC, False)):
        caveats = compare(spec, [trial_record(spec, 0, {"optimizer.lr": 0.001}, objective=1.0)]).caveats
        assert any("model.moe.capacity" in caveat for caveat in caveats) == expected


PROBE = {
    "trained_chunk_size": 64,
    "by_chunk_size": [
        {"chunk_size": 64, "loss": 2.5, "experts_per_token": 2.0},
        {"chunk_size": 4, "loss": 2.75, "experts_per_token": 2.0},
    ],
    "causal": None,
    "predictor_accuracy": None,
}


def test_router_that_sees_later_tokens_in_evaluation_too_is_a_caveat_of_its_own() -> None:
    routers = {
        "options": {
            "blind": {"kind": "expert_choice", "predictor": True},
            "seeing": {"kind": "expert_choice"},
        }
    }
    base = train_document()
    base["model"]["moe"]["balancing"] = []
    spec = experiment_spec(space={"model.moe.router": routers}, base=base)
    causal = {"chunk_size": None, "loss": 2.875, "experts_per_token": 1.5}
    trials = [
        trial_record(
            spec,
            number,
            {"model.moe.router": chosen},
            objective=1.0,
            summary=SUMMARY | {"lookahead": PROBE | {"causal": causal if chosen == "blind" else None}},
        )
        for number, chosen in enumerate(["blind", "seeing"])
    ]
    seeing = "The expert_choice router of trial 1 chooses a token's experts with a view of later tokens, in evaluation"
    blind = "In training the expert_choice router chooses a token's experts with a view of later tokens"
    together = "\n".join(compare(spec, trials).caveats)
    assert seeing in together
    assert blind in together
    assert "routed over each token alone instead of chunks of 64 tokens, the trained model of trial 0" in together
    assert "2.875 instead of 2.500" in together
    assert blind not in "\n".join(compare(spec, trials[1:]).caveats)
    assert "over chunks of 4 tokens instead of chunks of 64 tokens" in "\n".join(compare(spec, trials[1:]).caveats)
    trained_on_few = dataclasses.replace(trials[1], summary=SUMMARY | {"lookahead": PROBE | {"trained_chunk_size": 4}})
    caveats = compare(spec, [trained_on_few]).caveats
    assert any("over chunks of 64 tokens instead of chunks of 4 tokens" in caveat for caveat in caveats)
    assert seeing not in "\n".join(compare(spec, trials[:1]).caveats)
