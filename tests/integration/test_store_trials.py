"""Trials, runs, rungs and checkpoints: each thing happens once, whatever is repeated or lost."""

import math

import pytest

from orchestrator.errors import Fenced, IllegalTransition
from orchestrator.search.propose import propose
from orchestrator.search.stop import decide
from orchestrator.search.waiting import due
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, RunState, TrialState
from orchestrator.store.records import Decision, Proposal, RungDecision, RungRecord, TrialRecord
from orchestrator.store.session import Database
from tests.support.specs import experiment_spec
from tests.support.stores import claimed, proposed, started

ASHA = {"kind": "asha", "min_tokens": 1000, "reduction_factor": 2}


def stop(value: float | None, earlier: object) -> Decision:
    return Decision(decision=RungDecision.STOP, explanation="worst")


def refuse_to_decide(value: float | None, earlier: object) -> Decision:
    raise AssertionError("decided again")


def test_I7_proposal_sees_exactly_the_rows_before_it(database: Database) -> None:
    experiment_id, epoch = claimed(database, baselines=[{"name": "base"}])
    first = proposed(database, experiment_id, epoch)
    seen: list[tuple[int, list[str]]] = []

    def choose(number: int, history: list[TrialRecord]) -> Proposal:
        seen.append((number, [trial.id for trial in history]))
        return Proposal(params=first.params, config=None, problem="not possible")

    with database.transaction() as work:
        trial = work.trials.propose(experiment_id, epoch=epoch, choose=choose)
        baseline = work.trials.history(experiment_id)[0]
    assert trial is not None
    assert seen == [(2, [baseline.id, first.id])]
    assert trial.number == 2
    assert trial.asked_sequence > first.asked_sequence


def test_proposal_without_a_config_is_infeasible_for_good(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    with database.transaction() as work:
        trial = work.trials.propose(
            experiment_id,
            epoch=epoch,
            choose=lambda number, history: Proposal(params={"optimizer.lr": 0.0}, config=None, problem="lr is 0"),
        )
    assert trial is not None
    assert (trial.state, trial.cause, trial.reason) == (TrialState.INFEASIBLE, Cause.INVALID_CONFIG, "lr is 0")
    assert trial.finished_sequence is not None
    with pytest.raises(IllegalTransition, match="it is infeasible"), database.transaction() as work:
        work.runs.start(trial.id, epoch=epoch)


def test_nothing_more_to_propose_leaves_no_row(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    with database.transaction() as work:
        assert work.trials.propose(experiment_id, epoch=epoch, choose=lambda number, history: None) is None
    with database.read() as work:
        assert work.trials.history(experiment_id) == ()


@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes", "nsga2", "qmc"])
def test_proposals_from_stored_rows_are_those_from_rows_in_memory(database: Database, sampler: str) -> None:
    fields = {
        "sampler": {"kind": sampler}
        | {"tpe": {"num_startup_trials": 2}, "nsga2": {"population_size": 2}}.get(sampler, {}),
        "space": {
            "optimizer.lr": {"float": [1e-4, 1e-2], "log": True},
            "model.moe.top_k": {"choice": [1, 2]},
            "model.moe.balancing": {
                "options": {"none": [], "z": [{"kind": "router_z_loss", "coefficient": {"float": [1e-4, 1e-2]}}]}
            },
        },
    }
    experiment_id, epoch = claimed(database, **fields)
    with database.read() as work:
        stored_spec = ExperimentSpec.model_validate(work.experiments.get(experiment_id).spec)
    spec = experiment_spec(**fields)
    in_memory: list[TrialRecord] = []
    for number in range(6):
        expected = propose(spec, number=number, history=in_memory)
        with database.transaction() as work:
            trial = work.trials.propose(
                experiment_id,
                epoch=epoch,
                choose=lambda number, history: propose(stored_spec, number=number, history=history),
            )
        assert expected is not None
        assert trial is not None
        assert trial.params == expected.params
        run = started(database, trial.id, epoch)
        with database.transaction() as work:
            work.runs.settle(run.id, epoch=epoch, state=RunState.COMPLETED)
            in_memory.append(
                work.trials.settle(
                    trial.id, epoch=epoch, state=TrialState.COMPLETED, objective=2.0 - number / 10, objective_tokens=9
                )
            )


def test_I2_trial_has_one_live_run(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    assert run.folder == f"experiments/{experiment_id}/trials/00000/{run.id}"
    with pytest.raises(IllegalTransition, match=run.id), database.transaction() as work:
        work.runs.start(trial.id, epoch=epoch)
    with pytest.raises(IllegalTransition, match="its run"), database.transaction() as work:
        work.trials.settle(trial.id, epoch=epoch, state=TrialState.COMPLETED)


def test_segments_of_a_trial_run_one_after_the_other(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    first = started(database, trial.id, epoch)
    with database.transaction() as work:
        checkpoint = work.checkpoints.commit(
            first.id, epoch=epoch, step=2, tokens=1024, folder="c", manifest_sha256="0" * 64
        )
        work.runs.settle(first.id, epoch=epoch, state=RunState.COMPLETED)
        assert work.trials.waiting(experiment_id)[0].id == trial.id
        second = work.runs.start(trial.id, epoch=epoch, resume_from=checkpoint, stop_at_tokens=4096)
        assert work.trials.waiting(experiment_id) == ()
    assert (second.number, second.resumed_from_step, second.stop_at_tokens) == (1, 2, 4096)
    assert second.state is RunState.STARTING


def test_I4_I7_rung_that_is_reached_again_keeps_its_first_value_and_decision(database: Database) -> None:
    experiment_id, epoch = claimed(database, scheduler=ASHA)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    with database.transaction() as work:
        first = work.rungs.record(run.id, epoch=epoch, rung=0, tokens=1024, value=2.0, decide=stop)
        events = work.events.last_id()
    with database.transaction() as work:
        again = work.rungs.record(run.id, epoch=epoch, rung=0, tokens=1536, value=1.0, decide=refuse_to_decide)
        assert work.events.last_id() == events
    assert again == first
    assert (again.value, again.tokens, again.decision) == (2.0, 1024, RungDecision.STOP)


def test_I7_decision_is_made_on_the_arrivals_before_in_their_order(database: Database) -> None:
    experiment_id, epoch = claimed(database, scheduler=ASHA, baselines=[{"name": "base"}])
    spec = experiment_spec(scheduler=ASHA)
    with database.read() as work:
        baseline = work.trials.history(experiment_id)[0]
    run = started(database, baseline.id, epoch)
    with database.transaction() as work:
        arrival = work.rungs.record(run.id, epoch=epoch, rung=0, tokens=1024, value=9.0, decide=refuse_to_decide)
    assert arrival.decision is RungDecision.CONTINUE
    decisions = []
    for value in (3.0, 2.0, 4.0, 2.5):
        run = started(database, proposed(database, experiment_id, epoch).id, epoch)
        seen: list[float | None] = []

        def deciding(value: float | None, earlier: tuple[RungRecord, ...], seen: list[float | None] = seen) -> Decision:
            seen += [record.value for record in earlier]
            return decide(spec, 0, value, earlier)

        with database.transaction() as work:
            record = work.rungs.record(run.id, epoch=epoch, rung=0, tokens=1024, value=value, decide=deciding)
        decisions.append((seen, record.decision))
    assert decisions == [
        ([], "continue"),
        ([3.0], "continue"),
        ([3.0, 2.0], "stop"),
        ([3.0, 2.0, 4.0], "continue"),
    ]


def test_value_that_is_not_finite_is_stored_as_absent(database: Database) -> None:
    experiment_id, epoch = claimed(database, scheduler=ASHA)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    with database.transaction() as work:
        record = work.rungs.record(run.id, epoch=epoch, rung=0, tokens=1024, value=math.nan, decide=stop)
        work.runs.progress(run.id, epoch=epoch, progress={"loss": math.inf, "list": [math.nan, 1.0]})
        work.runs.settle(run.id, epoch=epoch, state=RunState.COMPLETED)
        settled = work.trials.settle(
            trial.id,
            epoch=epoch,
            state=TrialState.COMPLETED,
            objective=math.nan,
            objective_tokens=5,
            summary={"a": -math.inf},
        )
        run = work.runs.get(run.id)
    assert record.value is None
    assert run.progress == {"loss": None, "list": [None, 1.0]}
    assert (settled.objective, settled.objective_tokens, settled.summary) == (None, None, {"a": None})


def test_lost_run_is_retried_until_its_retries_are_used_up(database: Database) -> None:
    experiment_id, epoch = claimed(database, max_retries=2)
    trial = proposed(database, experiment_id, epoch)
    states = []
    for _ in range(3):
        run = started(database, trial.id, epoch)
        with database.transaction() as work:
            (lost,) = work.trials.lose_runs(experiment_id, epoch=epoch, run_ids=[run.id], reason="killed")
            states.append(work.trials.get(trial.id).state)
        assert (lost.state, lost.cause) == (RunState.LOST, Cause.PROCESS_LOST)
    assert states == [TrialState.RETRYING, TrialState.RETRYING, TrialState.FAILED]
    with database.read() as work:
        assert work.trials.get(trial.id).cause is Cause.RETRIES_EXHAUSTED


def test_trials_lost_with_their_driver_keep_their_retries(database: Database) -> None:
    experiment_id, epoch = claimed(database, max_retries=0)
    trials = [proposed(database, experiment_id, epoch) for _ in range(3)]
    for trial in trials[:2]:
        started(database, trial.id, epoch)
    with database.transaction() as work:
        work.experiments.release(experiment_id, epoch=epoch)
        new_epoch = work.experiments.claim(experiment_id, owner="next", ttl_s=15)
        assert new_epoch is not None
        lost = work.trials.lose_runs(experiment_id, epoch=new_epoch, reason="driver lost", counts=False)
        waiting = work.trials.waiting(experiment_id)
    assert [run.trial_id for run in lost] == [trial.id for trial in trials[:2]]
    assert [(trial.number, trial.state, trial.num_retries) for trial in waiting] == [
        (0, TrialState.RETRYING, 0),
        (1, TrialState.RETRYING, 0),
        (2, TrialState.QUEUED, 0),
    ]


def test_I2_I7_trial_that_a_rung_had_stopped_is_pruned_not_run_again_when_its_run_is_lost(database: Database) -> None:
    experiment_id, epoch = claimed(database, scheduler=ASHA)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    with database.transaction() as work:
        work.rungs.record(run.id, epoch=epoch, rung=0, tokens=1024, value=2.0, decide=stop)
    with database.transaction() as work:
        work.trials.lose_runs(experiment_id, epoch=epoch, reason="killed")
        settled = work.trials.get(trial.id)
    assert (settled.state, settled.cause, settled.reason) == (TrialState.PRUNED, Cause.ASHA, "worst")
    assert (settled.objective, settled.objective_tokens) == (2.0, 1024)


def test_I2_run_that_was_lost_can_report_nothing_more(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    run = started(database, proposed(database, experiment_id, epoch).id, epoch)
    with database.transaction() as work:
        work.trials.lose_runs(experiment_id, epoch=epoch, reason="killed")
    with pytest.raises(Fenced, match="lost"), database.transaction() as work:
        work.checkpoints.commit(run.id, epoch=epoch, step=1, tokens=1, folder="c", manifest_sha256="0" * 64)


def test_I7_settling_again_the_same_way_changes_nothing_and_another_way_is_refused(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    with database.transaction() as work:
        work.runs.settle(run.id, epoch=epoch, state=RunState.COMPLETED)
        first = work.trials.settle(trial.id, epoch=epoch, state=TrialState.COMPLETED, objective=1.0)
    with database.transaction() as work:
        assert work.trials.settle(trial.id, epoch=epoch, state=TrialState.COMPLETED, objective=2.0) == first
        assert work.runs.settle(run.id, epoch=epoch, state=RunState.COMPLETED).state is RunState.COMPLETED
    with pytest.raises(IllegalTransition), database.transaction() as work:
        work.trials.settle(trial.id, epoch=epoch, state=TrialState.FAILED)
    with pytest.raises(IllegalTransition), database.transaction() as work:
        work.runs.settle(run.id, epoch=epoch, state=RunState.LOST)


def test_newest_checkpoint_is_the_one_with_most_tokens_that_is_not_discarded(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    trial = proposed(database, experiment_id, epoch)
    run = started(database, trial.id, epoch)
    with database.transaction() as work:
        assert work.checkpoints.newest(trial.id) is None
        for step in (2, 4, 3):
            record = work.checkpoints.commit(
                run.id, epoch=epoch, step=step, tokens=512 * step, folder=f"c{step}", manifest_sha256="0" * 64
            )
            again = work.checkpoints.commit(
                run.id, epoch=epoch, step=step, tokens=0, folder="other", manifest_sha256="1" * 64
            )
            assert again == record
        newest = work.checkpoints.newest(trial.id)
        assert newest is not None
        assert newest.step == 4
        work.checkpoints.discard(newest.id, epoch=epoch)
        following = work.checkpoints.newest(trial.id)
        assert following is not None
        assert following.step == 3
        assert [record.step for record in work.checkpoints.of_trial(trial.id)] == [2, 3]


def test_I7_batch_is_decided_once_when_all_of_it_has_arrived_or_failed(database: Database) -> None:
    fields = {"scheduler": ASHA, "synchronous": True, "batch_size": 4}
    experiment_id, epoch = claimed(database, **fields)
    spec = experiment_spec(**fields)
    trials = [proposed(database, experiment_id, epoch) for _ in range(5)]
    assert [trial.batch for trial in trials] == [0, 0, 0, 0, 1]
    runs = [started(database, trial.id, epoch) for trial in trials[:4]]

    def settle_batch() -> list[tuple[int, RungDecision | None]]:
        with database.transaction() as work:
            for verdict in due(spec, work.trials.history(experiment_id)):
                work.rungs.decide(verdict.trial_id, verdict.rung, verdict.decision, epoch=epoch)
            history = work.trials.history(experiment_id)
        return [(record.trial_number, record.decision) for trial in history for record in trial.rungs]

    for number, (run, value) in enumerate(zip(runs[:3], (3.0, 1.0, 2.0), strict=True)):
        assert settle_batch() == [(other, None) for other in range(number)]
        with database.transaction() as work:
            record = work.rungs.record(run.id, epoch=epoch, rung=0, tokens=1024, value=value, decide=None)
        assert record.decision is None
    assert settle_batch() == [(0, None), (1, None), (2, None)]
    with database.transaction() as work:
        work.runs.settle(runs[3].id, epoch=epoch, state=RunState.FAILED, cause=Cause.DIVERGED)
        work.trials.settle(trials[3].id, epoch=epoch, state=TrialState.FAILED, cause=Cause.DIVERGED)
    # The failed trial counts among the four, of which two go on.
    decided = [(0, RungDecision.STOP), (1, RungDecision.CONTINUE), (2, RungDecision.CONTINUE)]
    assert settle_batch() == decided
    assert settle_batch() == decided


def test_pages_of_trials_come_in_the_order_of_numbers_with_their_rungs(database: Database) -> None:
    experiment_id, epoch = claimed(database, scheduler=ASHA)
    for _ in range(5):
        run = started(database, proposed(database, experiment_id, epoch).id, epoch)
        with database.transaction() as work:
            work.rungs.record(run.id, epoch=epoch, rung=0, tokens=1024, value=1.0, decide=stop)
    with database.read() as work:
        first = work.trials.list(experiment_id, limit=3)
        second = work.trials.list(experiment_id, limit=3, cursor=first.next_cursor)
        assert first.items + second.items == work.trials.history(experiment_id)
    assert [trial.number for trial in first.items] == [0, 1, 2]
    assert all(len(trial.rungs) == 1 for trial in first.items + second.items)
    assert second.next_cursor is None


def test_forwarder_is_given_trials_that_ran_until_they_are_finished(database: Database) -> None:
    experiment_id, epoch = claimed(database)
    ran, other = proposed(database, experiment_id, epoch), proposed(database, experiment_id, epoch)
    started(database, ran.id, epoch)
    with database.transaction() as work:
        assert [trial.id for trial in work.tracking.open_trials()] == [ran.id]
        work.tracking.save(ran.id, mlflow_run_id="m", positions={"run": {"scalars": 3}})
        assert [trial.id for trial in work.tracking.open_trials()] == [ran.id]
        work.tracking.save(ran.id, mlflow_run_id="m", positions={}, finished=True)
        assert work.tracking.open_trials() == ()
        assert work.tracking.get(other.id) is None


def test_service_row_is_what_was_last_reported(database: Database) -> None:
    with database.transaction() as work:
        assert work.services.get("ray") is None
        work.services.report("ray", state="starting", pid=1)
        work.services.report("ray", state="ready", pid=2, url="127.0.0.1:1", detail={"nodes": [{"cpus": 2.0}]})
        work.services.beat("ray")
        (service,) = work.services.list()
    assert (service.state, service.pid, service.detail) == ("ready", 2, {"nodes": [{"cpus": 2.0}]})
