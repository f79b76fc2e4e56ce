"""Decisions at rungs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.admission import admit
from orchestrator.errors import SpecRejected
from orchestrator.search.rungs import rung_tokens
from orchestrator.search.stop import RungDecision, decide, decide_batch
from orchestrator.store.records import TrialKind
from tests.support.records import rung_record
from tests.support.specs import experiment_document, experiment_spec, train_document

ASHA = {"kind": "asha", "min_tokens": 1000, "reduction_factor": 3}
SPEC = experiment_spec(scheduler=ASHA)
MAXIMIZING = experiment_spec(scheduler=ASHA, objective={"direction": "maximize"})

values = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 2.0])
histories = st.lists(values | st.none(), max_size=30)


def goes_on(value: float | None, earlier: list[float | None], spec=SPEC) -> bool:
    records = [rung_record(number, other) for number, other in enumerate(earlier)]
    return decide(spec, 0, value, records).decision is RungDecision.CONTINUE


def test_rungs_grow_by_the_factor_and_stay_below_the_budget() -> None:
    spec = experiment_spec(scheduler=ASHA, base=train_document(loop=_loop(27_000)))
    assert rung_tokens(spec) == (1000, 3000, 9000)


def test_no_rung_on_the_last_step() -> None:
    # Steps of 512 tokens: 9000 tokens and the end at 9100 are both reached at step 18.
    spec = experiment_spec(scheduler=ASHA, base=train_document(loop=_loop(9_100)))
    assert rung_tokens(spec) == (1000, 3000)


def test_without_a_scheduler_there_are_no_rungs_and_everything_goes_on() -> None:
    spec = experiment_spec()
    assert rung_tokens(spec) == ()
    assert decide(spec, 0, 99.0, [rung_record(0, 1.0)]).decision is RungDecision.CONTINUE


@pytest.mark.parametrize(
    ("earlier", "value", "expected"),
    [
        ([], 5.0, True),
        ([1.0], 2.0, False),
        ([2.0], 1.0, True),
        ([1.0, 2.0, 3.0, 4.0], 5.0, False),
        # Of six, two go on.
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.5, True),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 2.5, False),
    ],
)
def test_best_third_of_the_arrivals_goes_on(earlier: list[float | None], value: float, expected: bool) -> None:
    assert goes_on(value, earlier) is expected
    assert goes_on(-value, [-other for other in earlier if other is not None], MAXIMIZING) is expected


@given(earlier=histories, one=values, other=values)
def test_better_value_is_never_stopped_where_a_worse_one_goes_on(
    earlier: list[float | None], one: float, other: float
) -> None:
    better, worse = min(one, other), max(one, other)
    assert goes_on(better, earlier) >= goes_on(worse, earlier)


@given(earlier=histories, value=values)
def test_order_of_the_earlier_arrivals_plays_no_part(earlier: list[float | None], value: float) -> None:
    assert goes_on(value, earlier) == goes_on(value, earlier[::-1])


@given(earlier=histories)
def test_new_best_always_goes_on(earlier: list[float | None]) -> None:
    assert goes_on(min([other for other in earlier if other is not None], default=0.0) - 1, earlier)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_value_that_is_not_finite_stops_even_as_the_first(value: float | None) -> None:
    assert not goes_on(value, [])


def test_baselines_do_not_raise_the_bar() -> None:
    records = [rung_record(0, 0.1, kind=TrialKind.BASELINE)]
    assert decide(SPEC, 0, 5.0, records).decision is RungDecision.CONTINUE


def test_explanation_says_rank_and_cut_off() -> None:
    records = [rung_record(number, float(number)) for number in range(5)]
    decision = decide(SPEC, 0, 2.5, records)
    assert decision.explanation == "rank 4 of 6 at rung 0 with 2.5000; the best 2 go on, down to 1.0000"


batches = st.lists(values | st.none(), min_size=1, max_size=12)


@given(arrived=batches, num_failed=st.integers(0, 5), data=st.data())
def test_batch_is_decided_the_same_in_any_order(
    arrived: list[float | None], num_failed: int, data: st.DataObject
) -> None:
    records = [rung_record(number, value) for number, value in enumerate(arrived)]
    shuffled = data.draw(st.permutations(records))
    assert decide_batch(SPEC, 0, shuffled, num_failed) == decide_batch(SPEC, 0, records, num_failed)


@given(arrived=batches, num_failed=st.integers(0, 5))
def test_batch_keeps_a_third_and_at_least_one(arrived: list[float | None], num_failed: int) -> None:
    records = [rung_record(number, value) for number, value in enumerate(arrived)]
    decisions = decide_batch(SPEC, 0, records, num_failed)
    kept = [record for record in records if decisions[record.trial_id].decision is RungDecision.CONTINUE]
    finite = [value for value in arrived if value is not None]
    assert len(kept) == min(len(finite), max(1, (len(arrived) + num_failed) // 3))
    stopped = [record.value for record in records if record not in kept and record.value is not None]
    assert all(record.value is not None and record.value <= min(stopped, default=math.inf) for record in kept)


def test_ties_in_a_batch_go_to_the_lower_number() -> None:
    records = [rung_record(number, 1.0) for number in (4, 2, 3)]
    decisions = decide_batch(SPEC, 0, records)
    assert decisions["trl_2"].decision is RungDecision.CONTINUE
    assert decisions["trl_3"].decision is decisions["trl_4"].decision is RungDecision.STOP


def _loop(budget_tokens: int) -> dict[str, int]:
    return {"budget_tokens": budget_tokens, "global_batch_size": 8, "micro_batch_size": 8}


HYPERBAND = {"kind": "hyperband", "min_tokens": 1000, "reduction_factor": 3, "num_brackets": 2}
MEDIAN = {"kind": "median", "min_tokens": 2000, "interval_tokens": 3000, "min_trials": 3}
PATIENCE = {"kind": "patience", "min_tokens": 2000, "interval_tokens": 3000, "patience": 2, "min_delta": 0.1}


def test_rungs_at_equal_intervals_stay_below_the_budget() -> None:
    spec = experiment_spec(scheduler=MEDIAN, base=train_document(loop=_loop(12_000)))
    assert rung_tokens(spec) == (2000, 5000, 8000, 11_000)


def test_hyperband_judges_a_bracket_from_its_first_rung_and_by_itself() -> None:
    spec = experiment_spec(scheduler=HYPERBAND, baselines=[{"name": "base"}])
    # Behind the baseline, trials 1, 3, 5 are of bracket 0 and 2, 4, 6 of bracket 1.
    records = [rung_record(number, float(number)) for number in (1, 2, 3, 4)]
    assert decide(spec, 0, 9.0, records, number=6).decision is RungDecision.CONTINUE
    stopped = decide(spec, 0, 2.0, records, number=5)
    assert stopped.explanation == "rank 2 of 3 at rung 0 of bracket 0 with 2.0000; the best 1 go on, down to 1.0000"
    assert stopped.decision is RungDecision.STOP
    # Of bracket 1 the best is 2.0, whatever bracket 0 has.
    assert decide(spec, 1, 1.5, records, number=6).decision is RungDecision.CONTINUE
    assert decide(spec, 1, 2.5, records, number=6).decision is RungDecision.STOP


@pytest.mark.parametrize(
    ("earlier", "own", "value", "expected"),
    [
        ([1.0, 2.0], [], 9.0, True),  # too few to compare with
        ([1.0, 2.0, 3.0], [], 2.0, True),
        ([1.0, 2.0, 3.0], [], 2.5, False),
        ([1.0, 2.0, 3.0], [1.5], 2.5, True),  # its best counts
        ([1.0, None, None], [], 9.0, True),  # who had no finite value was worse
        ([1.0, 1.0, None], [], 9.0, False),
    ],
)
def test_median_stops_the_worse_half(
    earlier: list[float | None], own: list[float], value: float, expected: bool
) -> None:
    for sign, direction in ((1, "minimize"), (-1, "maximize")):
        spec = experiment_spec(scheduler=MEDIAN, objective={"direction": direction})
        records = [rung_record(n, None if v is None else sign * v, rung=1) for n, v in enumerate(earlier)]
        before = [rung_record(9, sign * v, rung=0) for v in own]
        decision = decide(spec, 1, sign * value, records, number=9, own=before)
        assert (decision.decision is RungDecision.CONTINUE) is expected, decision.explanation


@pytest.mark.parametrize(
    ("own", "value", "expected"),
    [
        ([], 9.0, True),
        ([3.0, 2.0], 2.5, True),  # one rung without a new best
        ([3.0, 2.0, 2.5], 2.5, False),
        ([3.0, 2.0, 2.5], 1.5, True),
        ([3.0, 2.95], 2.95, False),  # better, by less than min_delta
        ([3.0, 2.95], 2.85, True),
        ([None, 3.0], 3.0, True),
    ],
)
def test_patience_ends_with_rungs_that_bring_nothing_better(
    own: list[float | None], value: float, expected: bool
) -> None:
    for sign, direction in ((1, "minimize"), (-1, "maximize")):
        spec = experiment_spec(scheduler=PATIENCE, objective={"direction": direction})
        before = [rung_record(9, None if v is None else sign * v, rung=n) for n, v in enumerate(own)]
        decision = decide(spec, len(own), sign * value, [rung_record(1, -99.0)], number=9, own=before[::-1])
        assert (decision.decision is RungDecision.CONTINUE) is expected, decision.explanation


@pytest.mark.parametrize("scheduler", [HYPERBAND, MEDIAN, PATIENCE])
def test_value_that_is_not_finite_stops_under_every_rule(scheduler: dict[str, object]) -> None:
    assert decide(experiment_spec(scheduler=scheduler), 0, math.nan, []).decision is RungDecision.STOP


@pytest.mark.parametrize("scheduler", [MEDIAN, PATIENCE])
def test_rules_for_single_trials_do_not_decide_on_batches(scheduler: dict[str, object]) -> None:
    with pytest.raises(SpecRejected) as refused:
        admit(experiment_document(scheduler=scheduler, synchronous=True), capacity=None)
    assert [(problem.pointer, problem.code) for problem in refused.value.problems] == [
        ("/scheduler/kind", "not_synchronous")
    ]
    admit(experiment_document(scheduler=scheduler), capacity=None)


def test_rungs_without_number_are_refused() -> None:
    with pytest.raises(SpecRejected) as refused:
        admit(experiment_document(scheduler=MEDIAN | {"interval_tokens": 1}), capacity=None)
    assert [problem.pointer for problem in refused.value.problems] == ["/scheduler/interval_tokens"]
