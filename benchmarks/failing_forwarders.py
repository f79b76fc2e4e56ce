"""Forwarders beside an MLflow that fails, each in one way, which can be halted and let go on."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from orchestrator.errors import TrackingUnavailable
from orchestrator.execution import processes
from orchestrator.execution.processes import ProcessIdentity
from orchestrator.store.session import database_url, open_database
from orchestrator.tracking.forwarder import Forwarder
from tests.support.faulty_proxy import Fault, FaultyProxy

FAULTS = (Fault.REFUSE, Fault.BLACK_HOLE, Fault.SLOW, Fault.ERROR)
_PAUSE_S = 0.5
_TIMEOUT_S = 1
_NICENESS = 10


class FailingForwarder:
    """A process that forwards to an MLflow that fails in one way.

    Args:
        child: the process, a `multiprocessing.Process`.
        connection: on which it says how many requests met the fault so far.

    Attributes:
        processes: it, and those that go on and are halted with it.
    """

    def __init__(self, child: Any, connection: Any) -> None:
        self.processes = [psutil.Process(child.pid)]
        self._connection = connection

    def num_requests(self) -> int:
        """Returns how many requests met the fault, by the newest it said; waits until it says something."""
        newest = self._connection.recv()
        while self._connection.poll():
            newest = self._connection.recv()
        return newest


@contextmanager
def failing_forwarders(root: Path, url: str, server: ProcessIdentity) -> Iterator[dict[str, FailingForwarder]]:
    """A forwarder of the home `root` for each fault, by its name, started up and halted.

    The real server is halted together with the slow one, whose requests reach it: it would go on with them in a turn
    that is to have nothing beside it.
    """
    with ExitStack() as stack:
        started = {fault.value: stack.enter_context(_forwarder(root, url, fault)) for fault in FAULTS}
        for forwarder in started.values():
            forwarder.num_requests()
            forwarder.processes[0].suspend()
        served = processes.session_members(server)
        stack.callback(lambda: [process.resume() for process in served])
        for process in served:
            process.suspend()
        started[Fault.SLOW.value].processes.extend(served)
        yield started


@contextmanager
def _forwarder(root: Path, url: str, fault: Fault) -> Iterator[FailingForwarder]:
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=_forward, args=(str(root), url, fault.value, there), daemon=True
    )
    child.start()
    try:
        yield FailingForwarder(child, here)
    finally:
        child.kill()
        child.join()


def _forward(root: str, url: str, fault: str, connection: Connection) -> None:
    """Tries to forward to `url` through a proxy with that fault, until it is killed."""
    os.nice(_NICENESS)
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    database = open_database(database_url(Path(root)))
    with FaultyProxy((address.hostname, address.port)) as proxy, proxy.failing(Fault(fault)):
        while True:
            with suppress(TrackingUnavailable):
                Forwarder(database, Path(root), proxy.url, timeout_s=_TIMEOUT_S).round()
            # The first word says that it has started up, which is not what is measured.
            connection.send(proxy.met[Fault(fault)])
            time.sleep(_PAUSE_S)
