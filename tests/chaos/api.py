"""Kills of the API while clients submit and cancel: what was answered is there, each key stands for one experiment."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from sqlalchemy import select

from orchestrator.execution import processes
from orchestrator.execution.processes import ProcessIdentity
from orchestrator.states import ExperimentState
from orchestrator.store.migrate import upgrade
from orchestrator.store.models import ExperimentRow
from orchestrator.store.session import open_database
from tests.chaos.nursery import Nursery
from tests.chaos.report import Report
from tests.support.history import Accepted, read_history, violations
from tests.support.lab import free_port
from tests.support.specs import experiment_document

_NUM_CLIENTS = 8
_CANCEL_EVERY = 5
_PAUSE_S = 0.02
_TIMEOUT_S = 10.0
_START_PATIENCE_S = 120.0


class _Client(threading.Thread):
    """Submits under one key after the other, each until it is answered; cancels every fifth."""

    def __init__(self, number: int, url: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.accepted: list[Accepted] = []
        self.cancelled: list[str] = []
        self.wrong: list[str] = []
        self._number, self._url, self._is_over = number, url, stop

    def run(self) -> None:
        count = 0
        with httpx.Client(base_url=self._url, trust_env=False, timeout=_TIMEOUT_S) as client:
            while not self._is_over.is_set():
                count += 1
                key = f"client-{self._number}-{count}"
                headers = {"Idempotency-Key": key}
                answer = self._ask(client, "/v1/experiments", 201, json=experiment_document(name=key), headers=headers)
                if answer is None:
                    return
                self.accepted.append(Accepted(key, answer["id"]))
                if count % _CANCEL_EVERY == 0:
                    if self._ask(client, f"/v1/experiments/{answer['id']}:cancel", 202) is None:
                        return
                    self.cancelled.append(answer["id"])
                time.sleep(_PAUSE_S)

    def _ask(self, client: httpx.Client, path: str, status: int, **options: object) -> dict[str, str] | None:
        """The answer of a call that is made until it is answered; None if it is answered wrongly."""
        while True:
            try:
                answer = client.post(path, **options)  # pyright: ignore[reportArgumentType]
            except httpx.TransportError:
                time.sleep(_PAUSE_S)
                continue
            if answer.status_code == status:
                return answer.json()
            if answer.status_code != 503:
                self.wrong.append(f"{path}: {answer.status_code} {answer.text[:300]}")
                return None
            time.sleep(_PAUSE_S)


def kill_api(home: Path, database_url: str, *, num_kills: int, seed: int, say: Callable[[str], None]) -> Report:
    """Kills the API of a fresh home at random moments, its start among them, and checks what its clients were told."""
    rng = random.Random(seed)
    home.mkdir(parents=True, exist_ok=True)
    upgrade(database_url)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    stop = threading.Event()
    clients = [_Client(number, url, stop) for number in range(_NUM_CLIENTS)]
    for client in clients:
        client.start()
    began = time.monotonic()
    with Nursery("api.__main__") as nursery:

        def start() -> ProcessIdentity:
            return nursery.start(
                ["--port", str(port), "--no-token"],
                log=home / "api.log",
                environment={**os.environ, "EVENLOAD_HOME": str(home), "EVENLOAD_DATABASE_URL": database_url},
            )

        for number in range(num_kills):
            process = start()
            if rng.random() < 0.9:
                _wait_ready(url, process)
            time.sleep(rng.uniform(0, 0.7))
            _end(process)
            if number % 20 == 19:
                say(f"{number + 1} of {num_kills} kills of the API")
        process = start()
        _wait_ready(url, process)
        stop.set()
        for client in clients:
            client.join(60)
        _end(process)
    report = Report(kills={"api": num_kills}, duration_s=time.monotonic() - began)
    accepted = [entry for client in clients for entry in client.accepted]
    report.counts = {"accepted": len(accepted), "cancelled": sum(len(client.cancelled) for client in clients)}
    report.problems += [wrong for client in clients for wrong in client.wrong]
    report.problems += ["a client is still waiting for its answer" for client in clients if client.is_alive()]
    database = open_database(database_url)
    try:
        with database.read() as work:
            rows = work.connection.execute(select(ExperimentRow.id, ExperimentRow.idempotency_key)).all()
            states = {id: work.experiments.get(id).state for client in clients for id in client.cancelled}
        keys = {id: key for id, key in rows if key is not None}
        history = read_history(database, accepted=accepted, keys=keys, healed=False)
    finally:
        database.close()
    report.problems += [f"{invariant}: {what}" for invariant, what in violations(history)]
    report.problems += [
        f"I7: {id} was to be cancelled and is {state.value}"
        for id, state in states.items()
        if state is not ExperimentState.CANCELLED
    ]
    unheard = set(keys.values()) - {entry.key for entry in accepted}
    report.problems += [f"I9: {key} is there and its client was never told" for key in sorted(unheard)]
    return report


def _wait_ready(url: str, process: ProcessIdentity) -> None:
    deadline = time.monotonic() + _START_PATIENCE_S
    while True:
        try:
            httpx.get(f"{url}/livez", trust_env=False, timeout=_TIMEOUT_S).raise_for_status()
            return
        except httpx.TransportError:
            if not processes.is_alive(process) or time.monotonic() > deadline:
                raise RuntimeError("the API did not start") from None
            time.sleep(0.02)


def _end(process: ProcessIdentity) -> None:
    os.kill(process.pid, signal.SIGKILL)
    while processes.is_alive(process):
        time.sleep(0.005)
