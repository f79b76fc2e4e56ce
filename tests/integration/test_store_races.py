"""Cancel against completion: whoever comes first, the experiment ends once, and all readers agree on how."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from orchestrator.errors import IllegalTransition
from orchestrator.states import ExperimentState, is_terminal
from orchestrator.store.session import Database
from tests.support.history import read_history, violations
from tests.support.specs import experiment_document, experiment_spec

RACES = 250 if os.environ.get("EVENLOAD_CHAOS") else 50
"""On each of the two databases; `make chaos` asks for all of them."""


def test_I7_cancel_and_completion_race_to_one_end(database: Database) -> None:
    with database.transaction() as work:
        spec, document = experiment_spec(), experiment_document()
        ids = [work.experiments.submit(spec, document=document).experiment.id for _ in range(RACES)]
        epochs = [work.experiments.claim(id, owner="test", ttl_s=60) for id in ids]
    start = threading.Barrier(2, timeout=60)

    def complete(id: str, epoch: int) -> str:
        start.wait()
        for state in (ExperimentState.COMPLETED, ExperimentState.CANCELLED):
            try:
                database.run(lambda work, state=state: work.experiments.settle(id, epoch=epoch, state=state))
            except IllegalTransition:
                continue  # it is being cancelled; the driver sees to that instead
            return state.value
        raise AssertionError("neither completed nor cancelled")

    def cancel(id: str) -> str:
        start.wait()
        try:
            database.run(lambda work: work.experiments.request_cancel(id))
        except IllegalTransition:
            return "completed"
        return "cancelled"

    with ThreadPoolExecutor(2) as pool:
        told = []
        for id, epoch in zip(ids, epochs, strict=True):
            assert epoch is not None
            told.append((pool.submit(complete, id, epoch), pool.submit(cancel, id)))
            told[-1][0].exception(), told[-1][1].exception()
    ends = [(driver.result(), user.result()) for driver, user in told]
    assert all(driver == user for driver, user in ends), "both are told the same"
    history = read_history(database)
    assert violations(history) == []
    assert [experiment.state.value for experiment in history.experiments] == [driver for driver, _ in ends]
    terminal = Counter(
        event.experiment_id
        for event in history.events
        if event.kind == "experiment.state" and is_terminal(ExperimentState(event.data["to"]))
    )
    assert terminal == Counter(ids)
