"""Searches that go on: extended, begun with the trials of others, judged by several objectives; on both databases."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.errors import IllegalTransition, SpecRejected
from orchestrator.execution.analyst import Analyst, analyse
from orchestrator.extending import extended
from orchestrator.search.past import past_of
from orchestrator.search.propose import propose
from orchestrator.spec import ExperimentSpec
from orchestrator.states import ExperimentState
from orchestrator.store.analyses import AnalysisRecord
from orchestrator.store.overview import best_trials
from orchestrator.store.records import TrialRecord
from orchestrator.store.session import Database
from tests.support.api import installation
from tests.support.sweeps import play, submit, sweep_document, table, take_over

TPE = {"kind": "tpe", "num_startup_trials": 2}
WIDER = {"optimizer.lr": {"float": [1e-4, 1.0], "log": True}, "seed": {"int": [0, 9]}}


def tiny(**fields: Any) -> dict[str, Any]:
    return sweep_document(**{"num_steps": 2, "scheduler": {"kind": "none"}, "sampler": TPE, "num_trials": 3, **fields})


def extend(database: Database, experiment_id: str, *, num_trials: int, space: dict[str, Any]) -> None:
    with database.transaction() as work:
        record = work.experiments.get(experiment_id)
        spec = ExperimentSpec.model_validate(record.spec)
        admitted = extended(spec, document=record.document, num_trials=num_trials, space=space, capacity=None)
        document = admitted.document
        work.experiments.extend(experiment_id, admitted.spec, version=record.spec_version, document=document)


def trials_of(database: Database, experiment_id: str) -> tuple[TrialRecord, ...]:
    with database.read() as work:
        return work.trials.history(experiment_id)


def test_extended_experiment_keeps_its_trials_and_every_proposal_its_version(
    database: Database, tmp_path: Path
) -> None:
    experiment_id = submit(database, tiny())
    with pytest.raises(IllegalTransition, match="only an ended one"):
        extend(database, experiment_id, num_trials=6, space={})
    play(take_over(database, tmp_path, experiment_id))
    before = table(database, experiment_id)
    extend(database, experiment_id, num_trials=6, space=WIDER)
    play(take_over(database, tmp_path, experiment_id, max_concurrent=1))
    assert table(database, experiment_id)[:3] == before
    with database.read() as work:
        record = work.experiments.get(experiment_id)
        versions = {
            version: ExperimentSpec.model_validate(spec)
            for version, spec in work.experiments.spec_versions(experiment_id).items()
        }
    assert (record.state, record.spec_version, record.document["num_trials"]) == (ExperimentState.COMPLETED, 1, 6)
    trials = trials_of(database, experiment_id)
    assert [trial.spec_version for trial in trials] == [0, 0, 0, 1, 1, 1]
    # One at a time, so each of the later ones saw all before it as it ended.
    for trial in trials[3:]:
        spec = versions[trial.spec_version]
        again = propose(spec, number=trial.number, history=past_of(spec, trials[: trial.number]))
        assert again is not None
        assert again.params == trial.params
    assert set(trials[3].params) == {"optimizer.lr", "seed"}


def test_database_lets_an_ended_experiment_go_on_with_the_next_version_only(database: Database, tmp_path: Path) -> None:
    experiment_id = submit(database, tiny(num_trials=1))
    play(take_over(database, tmp_path, experiment_id))
    for values in (
        "state = 'queued'",
        "state = 'queued', spec_version = 2",
        "state = 'running', spec_version = 1",
        "spec_version = 1",
        "spec = '{}', spec_version = 1",
    ):
        with pytest.raises(IllegalTransition, match="illegal"), database.transaction() as work:
            work.connection.execute(text(f"UPDATE experiments SET {values}"))
    extend(database, experiment_id, num_trials=2, space={})
    with pytest.raises(IllegalTransition, match="illegal"), database.transaction() as work:
        work.connection.execute(text("UPDATE experiments SET spec = '{}', spec_version = 2"))


def test_warm_start_is_copied_at_submission_and_told(database: Database, tmp_path: Path) -> None:
    other = submit(database, tiny())
    play(take_over(database, tmp_path, other))
    document = tiny(warm_start=[other], space={"optimizer.lr": {"float": [1e-4, 3e-2], "log": True}})
    warm_id, cold_id = submit(database, document), submit(database, {**document, "warm_start": []})
    with database.read() as work:
        warm = work.warm_starts.of_experiment(warm_id)
        assert work.warm_starts.of_experiment(cold_id) is None
    assert warm is not None
    assert [trial.number for trial in warm.trials] == [0, 1, 2]
    # What the other experiment becomes later plays no part.
    extend(database, other, num_trials=4, space={})
    play(take_over(database, tmp_path, warm_id, max_concurrent=1))
    trials = trials_of(database, warm_id)
    spec = ExperimentSpec.model_validate(document)
    for trial in trials:
        again = propose(spec, number=trial.number, history=past_of(spec, trials[: trial.number], warm=warm))
        assert again is not None
        assert again.params == trial.params
    # With three trials told, the model is used from the first one on.
    cold = propose(spec, number=0, history=[])
    assert cold is not None
    assert cold.params != trials[0].params
    with pytest.raises(SpecRejected, match="exp_nobody"):
        submit(database, {**document, "warm_start": ["exp_nobody"]})


def test_values_of_all_objectives_and_vetoes_are_recorded(database: Database, tmp_path: Path) -> None:
    further = [
        {"metric": "eval/loss", "direction": "minimize", "value": {"kind": "best"}},
        {"metric": "tokens_per_s", "direction": "maximize"},
        {"metric": "router/max_violation", "direction": "minimize"},
    ]
    limit = {"metric": "eval/bits_per_byte", "relative_to": "base", "at_most": 0.0, "veto": True}
    document = tiny(further_objectives=further, objective={"constraints": [limit]}, baselines=[{"name": "base"}])
    experiment_id = submit(database, document)
    play(take_over(database, tmp_path, experiment_id))
    baseline, *trials = trials_of(database, experiment_id)
    # What the scripted runs say of themselves: their loss is the objective, and they have no router.
    assert [trial.further_values for trial in trials] == [[trial.objective, 1.0, None] for trial in trials]
    beyond = [trial for trial in trials if (trial.objective or 0.0) > (baseline.objective or 0.0)]
    assert [trial.id for trial in trials if trial.veto is not None] == [trial.id for trial in beyond]
    assert beyond
    with database.read() as work:
        best = best_trials(work.connection, {experiment_id: True})
    assert all(found.trial_id not in {trial.id for trial in beyond} for found in best.values())


def test_analysis_is_made_on_demand_kept_and_renewed(tmp_path: Path) -> None:
    with installation(tmp_path) as lab, lab.client() as client:
        experiment_id = submit(lab.database, tiny())
        play(take_over(lab.database, tmp_path, experiment_id))
        path = f"/v1/experiments/{experiment_id}/analysis"
        assert client.get(path).json() | {"analysis": None} == {
            "experiment_id": experiment_id,
            "state": "pending",
            "sequence": None,
            "at_ms": None,
            "problem": None,
            "analysis": None,
        }
        with lab.database.read() as work:
            assert work.analyses.next_wanted() == experiment_id
        analyse(lab.database, experiment_id)
        answer = client.get(path).json()
        assert answer["state"] == "current"
        assert answer["analysis"]["num_completed"] == 3
        with lab.database.read() as work:
            assert work.analyses.next_wanted() is None
        more = client.post(f"/v1/experiments/{experiment_id}:extend", json={"num_trials": 4})
        assert (more.status_code, more.json()["state"], more.json()["spec_version"]) == (202, "queued", 1)
        again = client.post(f"/v1/experiments/{experiment_id}:extend", json={"num_trials": 4})
        assert (again.status_code, again.json()["spec_version"]) == (202, 1)
        other = client.post(f"/v1/experiments/{experiment_id}:extend", json={"num_trials": 9})
        assert (other.status_code, other.json()["title"]) == (409, "The state does not allow this")
        play(take_over(lab.database, tmp_path, experiment_id))
        assert client.get(path).json()["state"] == "stale"
        with lab.database.transaction() as work:
            work.analyses.give_up(experiment_id, problem="it took too long")
        failed = client.get(path).json()
        assert (failed["problem"], failed["analysis"]["num_completed"]) == ("it took too long", 3)
        with lab.database.read() as work:
            assert work.analyses.next_wanted() is None  # not again at once
        refused = client.post(f"/v1/experiments/{experiment_id}:extend", json={"num_trials": 2})
        assert [error["pointer"] for error in refused.json()["errors"]] == ["/num_trials"]


def test_analyst_works_out_what_is_wanted_in_a_process_of_its_own(tmp_path: Path) -> None:
    with installation(tmp_path) as lab:
        ids = [submit(lab.database, tiny(num_trials=1)) for _ in range(2)]
        with lab.database.transaction() as work:
            for experiment_id in ids:
                work.analyses.want(experiment_id)
        analyst = Analyst(lab.database, tmp_path)
        analyst.check()
        assert analyst.pid is not None
        os.kill(analyst.pid, signal.SIGKILL)
        found: dict[str, AnalysisRecord | None] = {}
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            analyst.check()
            with lab.database.read() as work:
                found = {experiment_id: work.analyses.of_experiment(experiment_id) for experiment_id in ids}
                if work.analyses.next_wanted() is None:
                    break
            threading.Event().wait(0.05)
        killed, done = (found[experiment_id] for experiment_id in ids)
        assert killed is not None
        assert killed.problem == "its process ended with -9; see logs/analyst.log"
        assert done is not None
        assert done.document is not None
        assert done.document["num_trials"] == 0
        analyst.stop()
        assert analyst.pid is None
