"""Points: several seeds of one configuration seen as one trial, decided on as one, and what they came to."""

import math
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.search.points import as_trials, is_paused, points_of, replica_config
from orchestrator.search.promote import promoted
from orchestrator.search.propose import propose
from orchestrator.search.replicates import interval, results_by_point, t_quantile
from orchestrator.search.stop import decide
from orchestrator.search.waiting import due, on_arrival
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, TrialState
from orchestrator.store.records import ExperimentRecord, RungDecision, TrialKind, TrialRecord
from orchestrator.tracking.record import tags
from tests.support.records import rung_record, trial_record
from tests.support.specs import experiment_spec

ASHA = {"kind": "asha", "min_tokens": 1000, "reduction_factor": 2}
INTERVAL = {"min_tokens": 1000, "interval_tokens": 1000}
SPEC = experiment_spec(scheduler=ASHA, replicas=3)


def replica(
    spec: ExperimentSpec,
    point: int,
    seed: int,
    *,
    rungs: tuple[tuple[float | None, RungDecision | None], ...] = (),
    is_baseline: bool = False,
    **fields: object,
) -> TrialRecord:
    """Replica `seed` of a point; it arrived at its rungs as number `10 * rung + its own` of all that happened."""
    number = point * spec.replicas + seed
    params = None if is_baseline else {"optimizer.lr": 0.001 * (1 + point)}
    trial = trial_record(spec, number, params, **fields)  # type: ignore[arg-type]
    records = tuple(
        rung_record(number, value, rung=rung, decision=decision, sequence=1000 * rung + number)
        for rung, (value, decision) in enumerate(rungs)
    )
    return replace(trial, point=point, replica=seed, rungs=records)


def waiting(point: int, values: tuple[float | None, ...]) -> list[TrialRecord]:
    """A point whose replicas have arrived at rung 0 with `values`."""
    return [
        replica(SPEC, point, seed, rungs=((value, None),), state=TrialState.RUNNING)
        for seed, value in enumerate(values)
    ]


def test_with_one_seed_a_point_is_its_trial() -> None:
    spec = experiment_spec(scheduler=ASHA)
    trials = [trial_record(spec, number, {"optimizer.lr": 0.001}, objective=1.0) for number in range(3)]
    assert as_trials(spec, trials) == tuple(trials)
    assert [point.record for point in points_of(spec, trials)] == trials


def test_point_arrives_when_all_that_live_have_and_has_their_mean() -> None:
    trials = waiting(0, (1.0, 2.0, 6.0))
    late = replace(trials[2], rungs=())
    assert points_of(SPEC, [*trials[:2], late])[0].record.rungs == ()
    assert points_of(SPEC, trials[:2])[0].record.rungs == (), "the third seed is still to be proposed"
    (point,) = points_of(SPEC, trials)
    assert is_paused(point.record)
    assert (point.record.rungs[0].value, point.record.rungs[0].sequence) == (3.0, 2)
    failed = replace(late, state=TrialState.FAILED, finished_at_ms=1, finished_sequence=50)
    (without,) = points_of(SPEC, [*trials[:2], failed])
    assert (without.record.rungs[0].value, without.record.rungs[0].sequence) == (1.5, 50)


def test_one_decision_for_all_seeds_by_their_mean() -> None:
    # By its luckiest seed point 1 would win.
    trials = [*waiting(0, (2.0, 2.0, 2.0)), *waiting(1, (1.0, 4.0, 4.0))]
    verdicts = due(SPEC, trials)
    assert {verdict.trial_id: verdict.decision.decision for verdict in verdicts} == {
        **{f"trl_{number}": RungDecision.CONTINUE for number in (0, 1, 2)},
        **{f"trl_{number}": RungDecision.STOP for number in (3, 4, 5)},
    }
    assert verdicts[-1].decision.explanation.startswith("rank 2 of 2 at rung 0 with 3.0000")
    assert due(SPEC, trials[:5]) == verdicts[:3], "an incomplete point waits, and plays no part"


@given(st.permutations(range(6)))
def test_decisions_do_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    trials = [*waiting(0, (2.0, 2.0, 2.0)), *waiting(1, (1.0, 4.0, 4.0))]
    assert due(SPEC, [trials[index] for index in order]) == due(SPEC, trials)


@pytest.mark.parametrize(
    "scheduler",
    [ASHA, ASHA | {"kind": "hyperband", "num_brackets": 2}, {"kind": "median", "min_trials": 2} | INTERVAL],
)
@given(values=st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, None]), min_size=1, max_size=8))
def test_many_that_wait_are_decided_as_each_by_itself_among_those_before_it(
    scheduler: dict[str, object], values: list[float | None]
) -> None:
    spec = experiment_spec(scheduler=scheduler, replicas=2)
    trials = [
        replica(spec, point, seed, rungs=((value, None),), state=TrialState.RUNNING)
        for point, value in enumerate(values)
        for seed in (0, 1)
    ]
    verdicts = due(spec, trials)
    arrivals = [point.record.rungs[0] for point in points_of(spec, trials)]
    for point, value in enumerate(values):
        alone = decide(spec, 0, value, arrivals[:point], number=point)
        assert [verdict.decision for verdict in verdicts[2 * point : 2 * point + 2]] == [alone, alone]


def test_seed_without_a_finite_value_ends_alone() -> None:
    broken = replica(SPEC, 0, 0, state=TrialState.RUNNING)
    decision = on_arrival(SPEC, broken, 0, math.nan, ())
    assert decision is not None
    assert decision.decision is RungDecision.STOP
    ended = replica(
        SPEC, 0, 0, rungs=((None, RungDecision.STOP),), state=TrialState.PRUNED, cause=Cause.ASHA, finished_sequence=9
    )
    trials = [ended, *waiting(0, (9.9, 3.0, 5.0))[1:]]
    (point,) = points_of(SPEC, trials)
    assert point.record.rungs[0].value == 4.0
    assert {verdict.trial_id for verdict in due(SPEC, trials)} == {"trl_1", "trl_2"}


def test_all_seeds_of_a_point_are_promoted_together_and_only_when_none_runs() -> None:
    spec = experiment_spec(scheduler=ASHA | {"mode": "promote"}, replicas=3)
    trials = [*waiting(0, (2.0, 2.0, 2.0)), *waiting(1, (3.0, 3.0, 3.0))]
    assert {verdict.trial_id for verdict in promoted(spec, trials, live=())} == {"trl_0", "trl_1", "trl_2"}
    assert promoted(spec, trials, live={"trl_2"}) == []


def test_sampler_is_told_of_points() -> None:
    spec = experiment_spec(replicas=2, num_trials=3, sampler={"kind": "tpe", "num_startup_trials": 1})
    done = [replica(spec, 0, seed, objective=1.0 + seed) for seed in range(2)]
    first = as_trials(spec, done)
    assert [(trial.number, trial.objective) for trial in first] == [(0, 1.5)]
    alone = [trial_record(spec, 0, {"optimizer.lr": 0.001}, objective=1.5)]
    assert propose(spec, number=1, history=first) == propose(spec, number=1, history=alone)
    assert propose(spec, number=3, history=first) is None, "num_trials counts points"


def test_every_point_has_the_same_seeds_and_the_first_is_the_base_s() -> None:
    spec = experiment_spec(replicas=3)
    seeds = [replica_config(spec.base, number).seed for number in range(4)]
    assert seeds[0] == spec.base.seed
    assert len(set(seeds)) == 4
    other = spec.base.model_copy(update={"optimizer": spec.base.optimizer.model_copy(update={"lr": 0.5})})
    assert [replica_config(other, number).seed for number in range(4)] == seeds


@pytest.mark.parametrize(
    ("degrees", "expected"),
    # Fisher and Yates' table, two-sided 5 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_t_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_interval_of_a_textbook_sample() -> None:
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert interval([1.0]) == (None, None)


def results(base: list[float], mine: list[float], **fields: object):
    spec = experiment_spec(replicas=3, baselines=[{"name": "base"}], **fields)
    trials = [replica(spec, 0, seed, is_baseline=True, objective=value) for seed, value in enumerate(base)]
    trials += [replica(spec, 1, seed, objective=value) for seed, value in enumerate(mine)]
    return {result.point: result for result in results_by_point(spec, trials)}


def test_paired_difference_sees_what_the_seeds_share() -> None:
    # Seeds differ by far more than the two configurations, but alike for both.
    found = results([1.0, 2.0, 3.0], [0.91, 1.89, 2.90])[1]
    (difference,) = found.differences
    assert difference.num_pairs == 3
    assert difference.value == pytest.approx(-0.1)
    assert difference.low is not None
    assert difference.high is not None
    assert difference.low < -0.1 < difference.high < 0
    assert difference.within_noise is False
    # Their own intervals overlap wide and far.
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.0
    assert found.high > 3.0


def test_difference_within_seed_noise_is_called_that() -> None:
    (difference,) = results([1.0, 1.1, 1.2], [1.05, 1.02, 1.25])[1].differences
    assert difference.within_noise is True


@given(st.lists(st.floats(-10, 10), min_size=3, max_size=3), st.lists(st.floats(-10, 10), min_size=3, max_size=3))
def test_difference_is_that_of_the_means_where_all_seeds_are_there(base: list[float], mine: list[float]) -> None:
    (difference,) = results(base, mine)[1].differences
    assert difference.value == pytest.approx(statistics.fmean(mine) - statistics.fmean(base), abs=1e-9)


def test_failed_seeds_are_counted_and_rank_behind() -> None:
    spec = experiment_spec(replicas=3, baselines=[{"name": "base"}])
    trials = [replica(spec, 0, seed, is_baseline=True, objective=5.0) for seed in range(3)]
    trials += [replica(spec, 1, seed, objective=1.0) for seed in range(2)]
    trials += [replica(spec, 1, 2, state=TrialState.FAILED, cause=Cause.DIVERGED)]
    trials += [replica(spec, 2, seed, objective=2.0) for seed in range(2)]
    trials += [replica(spec, 2, 2, state=TrialState.RUNNING)]
    first, second, third = results_by_point(spec, trials)
    assert (first.point, first.rank, first.label, first.kind) == (0, 1, "base", TrialKind.BASELINE)
    assert (second.point, second.rank, second.num_completed, second.num_failed, second.mean) == (1, 2, 2, 1, 1.0)
    assert (third.point, third.rank, third.num_open) == (2, None, 1)
    assert second.differences[0].num_pairs == 2


def test_without_replicas_there_are_no_points_to_show() -> None:
    spec = experiment_spec()
    assert results_by_point(spec, [trial_record(spec, 0, {"optimizer.lr": 0.001}, objective=1.0)]) == ()


def test_mlflow_can_group_the_seeds_of_a_point() -> None:
    experiment = ExperimentRecord(
        id="exp_0",
        name="seeds",
        state=ExperimentState.RUNNING,
        reason="",
        since_ms=0,
        document={},
        spec={},
        warnings=(),
        sequence=0,
        epoch=1,
        lease_owner=None,
        lease_until_ms=None,
        lease_boot_id=None,
        mlflow_experiment_id=None,
        created_at_ms=0,
        finished_at_ms=None,
        trial_counts={},
    )
    found = tags(experiment, replica(SPEC, 4, 2, objective=1.0), None, num_runs=1)
    assert (found["evenload.point"], found["evenload.replica"]) == ("4", "2")
    alone = trial_record(experiment_spec(), 0, {"optimizer.lr": 0.001}, objective=1.0)
    assert "evenload.point" not in tags(experiment, alone, None, num_runs=1)
