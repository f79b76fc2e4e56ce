"""A process that writes is killed at any moment: what it said was stored is stored, and nothing is half there."""

import signal
import subprocess
import sys
from collections import Counter

import pytest

from orchestrator.states import TrialState
from orchestrator.store.session import open_database

WRITER = """
import sys
from orchestrator.states import RunState, TrialState
from orchestrator.store.session import open_database
from tests.support.stores import claimed, proposed, started

database = open_database(sys.argv[1])
experiment_id, epoch = claimed(database)
print("experiment", experiment_id, flush=True)
while True:
    trial = proposed(database, experiment_id, epoch)
    print("proposed", trial.id, flush=True)
    run = started(database, trial.id, epoch)
    print("started", run.id, flush=True)
    with database.transaction() as work:
        work.runs.settle(run.id, epoch=epoch, state=RunState.COMPLETED)
        work.trials.settle(trial.id, epoch=epoch, state=TrialState.COMPLETED, objective=1.0)
    print("settled", trial.id, flush=True)
"""


@pytest.mark.parametrize("lines_before_the_kill", [2, 3, 4, 9, 17])
def test_I1_what_was_acknowledged_before_a_kill_is_there_and_the_rest_is_whole(
    database_url: str, lines_before_the_kill: int
) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, database_url], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    said = [writer.stdout.readline().split() for _ in range(lines_before_the_kill)]
    writer.send_signal(signal.SIGKILL)
    said += [line.split() for line in writer.stdout.readlines()]
    writer.wait(30)
    writer.stdout.close()
    acknowledged = {word: [identifier for kind, identifier in said if kind == word] for word in dict(said)}

    database = open_database(database_url)
    with database.read() as work:
        (experiment_id,) = acknowledged["experiment"]
        trials = {trial.id: trial for trial in work.trials.history(experiment_id)}
        assert set(acknowledged.get("proposed", [])) <= set(trials)
        for run_id in acknowledged.get("started", []):
            assert work.runs.get(run_id).started_at_ms is not None
        for trial_id in acknowledged.get("settled", []):
            assert trials[trial_id].state is TrialState.COMPLETED
        # At most one step further than what was said, and no trial without its events.
        assert len(trials) <= len(acknowledged.get("proposed", [])) + 1
        proposed = [event.trial_id for event in work.events.after(0) if event.kind == "trial.proposed"]
        assert Counter(proposed) == Counter(list(trials))
    database.close()
