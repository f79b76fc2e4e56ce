"""Trials that wait at rungs with a checkpoint, played through the conductor: promotion, batches, seeds, populations."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from api.answers import experiment_summaries
from api.comparison import comparison
from api.tables import comparison_view
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.store.records import RungDecision
from orchestrator.store.session import Database
from tests.support.replay import promotions_not_replayed
from tests.support.sweeps import ASHA, play, script, sqlite_database, submit, sweep_document, table, take_over
from trainer.config.run import DomainEvaluation, RunReport, RunRequest

PBT = {"kind": "pbt", "resource": "steps", "min_resource": 8, "interval_resource": 12, "quantile": 0.4}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    yield from sqlite_database(tmp_path)


WAITING = {
    "promotion": (13, {"scheduler": ASHA | {"mode": "promote"}, "num_trials": 5}),
    "brackets": (
        19,
        {
            "scheduler": ASHA | {"kind": "hyperband", "num_brackets": 2},
            "num_trials": 3,
            "synchronous": True,
            "batch_size": 3,
        },
    ),
    "seeds": (15, {"replicas": 2, "num_trials": 2, "baselines": [{"name": "dense", "set": {"model.moe": None}}]}),
    "batches of seeds": (17, {"replicas": 2, "num_trials": 2, "synchronous": True, "batch_size": 2}),
    "population": (22, {"scheduler": PBT, "num_trials": 3}),
}
"""Experiments whose trials wait at rungs, and the call after which their driver is gone."""


def rendered(view: RenderableType) -> str:
    """What a person sees of it."""
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(view)
    return console.export_text()


def promises(database: Database, experiment_id: str) -> None:
    """What holds at any moment: one run at a time, no decision without its arrival, copies begin where they say."""
    with database.read() as work:
        trials = {trial.id: trial for trial in work.trials.history(experiment_id)}
        events = work.events.after(0, experiment_id=experiment_id, limit=1000)
        copies = {
            trial.id: work.checkpoints.get(trial.parent_checkpoint_id)
            for trial in trials.values()
            if trial.parent_checkpoint_id is not None
        }
    live: dict[str | None, int] = {}
    decided: set[tuple[str | None, int]] = set()
    for event in events:
        if event.kind == "run.state":
            live[event.trial_id] = live.get(event.trial_id, 0) + (event.data["from"] is None)
            live[event.trial_id] -= RunState(event.data["to"]) not in (RunState.STARTING, RunState.RUNNING)
            assert live[event.trial_id] in (0, 1), "never two runs of a trial"
        if event.kind == "rung.decided":
            rung = (event.trial_id, event.data["rung"])
            assert rung not in decided, "nothing is decided twice"
            decided.add(rung)
    for trial_id, checkpoint in copies.items():
        config = trials[trial_id].config
        assert config is not None
        assert config["start"]["path"] == checkpoint.folder
        assert config["start"]["sha256"] == checkpoint.manifest_sha256
        assert checkpoint.state == "committed", "a copy pins what it begins with"


@pytest.mark.parametrize("name", WAITING)
def test_I2_I7_trials_that_wait_survive_a_kill(database: Database, tmp_path: Path, name: str) -> None:
    crash_after, fields = WAITING[name]
    document = sweep_document(num_steps=32, **fields)
    killed = submit(database, document)
    play(take_over(database, tmp_path, killed), max_calls=crash_after)
    with database.read() as work:
        before = {trial.number: trial for trial in work.trials.history(killed)}
    promises(database, killed)
    play(take_over(database, tmp_path, killed, max_concurrent=3))
    promises(database, killed)
    with database.read() as work:
        after = {trial.number: trial for trial in work.trials.history(killed)}
        assert work.experiments.get(killed).state is ExperimentState.COMPLETED
    for number, trial in before.items():
        now = after[number]
        assert (now.params, now.config, now.parent_trial_id) == (trial.params, trial.config, trial.parent_trial_id)
        for then, later in zip(trial.rungs, now.rungs, strict=False):
            assert (then.value, then.sequence) == (later.value, later.sequence)
            assert then.decision in (None, later.decision)
        assert trial.finished_at_ms is None or now == trial
    if name in ("batches of seeds", "population"):  # whose tables do not depend on the order of arrival
        undisturbed = submit(database, document)
        play(take_over(database, tmp_path, undisturbed, max_concurrent=1))
        assert table(database, killed) == table(database, undisturbed)
    if name == "seeds":
        with database.read() as work:
            shown = comparison(work, killed)
            (summary,) = experiment_summaries(work, [work.experiments.get(killed)])
        best = shown.points[0]
        assert (best.rank, best.kind, best.num_completed, best.num_open) == (1, "search", 2, 0)
        assert summary.num_trials == len(after) == 6
        assert summary.best is not None
        assert (summary.best.trial_id, summary.best.objective) == (best.trial_ids[0], best.mean)
        # The script's runs do not depend on the seed, so all pairs differ alike.
        (difference,) = best.differences
        assert (difference.baseline_label, difference.num_pairs) == ("dense", 2)
        assert difference.low == difference.high == difference.value
        text = rendered(comparison_view(shown))
        assert "By configuration, mean over seeds" in text
        assert f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]" in text
    if name == "population":
        states = [(row[3], row[4]) for row in table(database, killed)]
        num_ended = states.count((TrialState.PRUNED, Cause.PBT))
        assert num_ended == len(states) - 3 > 0, "for each that ended there is a copy"
        assert states.count((TrialState.COMPLETED, None)) == 3


def test_I7_recorded_order_replays_every_promotion(database: Database, tmp_path: Path) -> None:
    document = sweep_document(num_steps=32, num_trials=7, scheduler=ASHA | {"mode": "promote"})
    experiment_id = submit(database, document)
    play(take_over(database, tmp_path, experiment_id, max_concurrent=3))
    with database.read() as work:
        trials = work.trials.history(experiment_id)
        events = list(work.events.after(0, experiment_id=experiment_id, limit=1000))
    spec = ExperimentSpec.model_validate(document)
    promotions = [rung for trial in trials for rung in trial.rungs if rung.decision is RungDecision.CONTINUE]
    assert len(promotions) >= 4
    assert list(promotions_not_replayed(spec, trials, events)) == []
    # It would be seen: before the last arrival that came before it the first promotion is one too early.
    decided = next(place for place, event in enumerate(events) if event.kind == "rung.decided")
    arrived = max(place for place, event in enumerate(events[:decided]) if event.kind == "rung.arrived")
    events.insert(arrived, events.pop(decided))
    assert list(promotions_not_replayed(spec, trials, events)) != []


def test_paused_trial_keeps_the_checkpoints_of_its_rungs_and_says_why_it_waits(
    database: Database, tmp_path: Path
) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, scheduler=ASHA | {"mode": "promote"}))
    conductor = take_over(database, tmp_path, experiment_id)
    request = conductor.next_run()
    assert isinstance(request, RunRequest)
    for report in script(request):
        assert conductor.report(request.run_id, report)
    with database.read() as work:
        (trial,) = work.trials.history(experiment_id)
        checkpoints = work.checkpoints.of_trial(trial.id)
        (run,) = work.runs.of_trial(trial.id)
    assert (run.state, run.stop_at_tokens) == (RunState.COMPLETED, trial.rungs[0].tokens)
    assert trial.reason == "paused at rung 0, waiting to be among the best that are promoted"
    assert [checkpoint.tokens for checkpoint in checkpoints] == [trial.rungs[0].tokens]
    resumed = conductor.next_run()
    assert isinstance(resumed, RunRequest)
    assert resumed.resume_from == str(tmp_path / checkpoints[0].folder)


def test_lost_seed_of_a_point_is_waited_for_and_a_failed_one_is_not(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, sweep_document(num_trials=1, replicas=2, max_retries=1))
    conductor = take_over(database, tmp_path, experiment_id, max_concurrent=2)
    requests = [request for request in (conductor.next_run(), conductor.next_run()) if isinstance(request, RunRequest)]
    seeds = [request.config.seed for request in requests]
    assert seeds[0] == sweep_document()["base"]["seed"] != seeds[1]
    runs = [iter(script(request)) for request in requests]
    for report in runs[0]:
        conductor.report(requests[0].run_id, report)
    with database.read() as work:
        first = work.trials.history(experiment_id)[0]
    assert first.rungs[0].decision is None
    assert first.reason == "paused at rung 0, waiting for the other seeds of its point"
    second = first
    for _ in range(2):
        conductor.ended(conductor.live_runs()[0].id, "its process was lost")
        with database.read() as work:
            first, second = work.trials.history(experiment_id)
        if second.finished_at_ms is None:
            assert first.rungs[0].decision is None
            assert isinstance(conductor.next_run(), RunRequest)
    assert second.cause is Cause.RETRIES_EXHAUSTED
    assert first.rungs[0].decision is RungDecision.CONTINUE
    assert (first.rungs[0].explanation or "").startswith("rank 1 of 1")


def test_run_under_rungs_in_seconds_ends_at_the_next_one_that_was_not_reported(
    database: Database, tmp_path: Path
) -> None:
    scheduler = {"kind": "asha", "resource": "seconds", "min_resource": 60, "reduction_factor": 2, "mode": "promote"}
    conductor = take_over(database, tmp_path, submit(database, sweep_document(num_trials=1, scheduler=scheduler)))
    request = conductor.next_run()
    assert isinstance(request, RunRequest)
    assert (request.rung_tokens, request.stop_at_tokens) == ((), None)
    assert (request.rung_seconds[:3], request.first_timed_rung, request.stop_at_timed_rung) == ((60, 120, 240), 0, 0)
    score = {"all": DomainEvaluation(bits_per_byte=3.0, loss=4.0)}
    conductor.report(request.run_id, RunReport(kind="started", step=0, tokens=0))
    conductor.report(request.run_id, RunReport(kind="progress", step=5, tokens=640, rung=0, evaluation=score))
    conductor.report(request.run_id, RunReport(kind="stopped", step=5, tokens=640))
    promoted_run = conductor.next_run()
    assert isinstance(promoted_run, RunRequest)
    assert (promoted_run.first_timed_rung, promoted_run.stop_at_timed_rung) == (1, 1)
