"""The simulated world: what runs next, which message arrives, what breaks. Everything comes from one seeded generator.

Processes are generators. At every `yield` a process may be killed, may wait for long, and anything else may happen: so
a crash comes between any two things that a process does. A transaction of the store is one thing; it may also fail
without a trace, or be committed without the one who asked being told.
"""

import random
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.errors import StoreUnavailable
from orchestrator.execution.plan import ServiceState
from orchestrator.store.clock import LeaseTime
from tests.support.history import Accepted, Violation

T = TypeVar("T")

Steps = Generator[None, None, None]

_DAY_MS = 86_400_000
_P_FAULT, _P_DELIVER = 0.05, 0.35
_P_DROP, _P_DUPLICATE = 0.08, 0.08
_P_AWAY, _P_UNTOLD = 0.015, 0.015
_HEALING_ROUNDS = 600
_MAX_STEP_MS, _ROUND_MS = 400, 3000


@dataclass(eq=False, slots=True)
class Process:
    """A process of a host: `api`, `daemon`, `driver` (and its thread `watch`), `trial`, `client` or `follower`.

    Attributes:
        parent: a trial's driver; the trial does not outlive it for long.
        stop: somebody has asked it to save and end.
        frozen_until_ms: it is stopped (SIGSTOP, swapped out), and goes on then as if nothing had been.
    """

    kind: str
    host: str
    parent: "Process | None" = None
    inbox: deque[Any] = field(default_factory=deque)
    is_alive: bool = True
    stop: bool = False
    frozen_until_ms: int = 0
    steps: Steps | None = None


@dataclass
class Disk:
    """Files that outlive processes.

    Attributes:
        drivers: per host and experiment: the driver that said that it is there, and its epoch.
        checkpoints: per folder: step, state, and `partial`, `whole` or `damaged`.
        spools: per run: step and state, as telemetry has them.
    """

    drivers: dict[tuple[str, str], tuple[Process, int]] = field(default_factory=dict)
    checkpoints: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    spools: dict[str, list[tuple[int, int]]] = field(default_factory=dict)


class World:
    """Hosts, processes, messages and clocks around a store.

    Args:
        seed: of everything that happens.
        is_faulty: False for a world in which nothing breaks, to compare with.
    """

    def __init__(self, seed: int, *, is_faulty: bool = True) -> None:
        self.seed = seed
        self.faults: tuple[str, ...] = FAULTS
        self.rng = random.Random(seed)
        self.is_faulty = is_faulty
        self.store: Any = None
        self.ms = 0
        self.clock_error_ms = 0
        self.processes: list[Process] = []
        self.network: list[tuple[Process | None, Any]] = []
        self.disk = Disk()
        self.ray = ServiceState.READY
        self.accepted: list[Accepted] = []
        self.observed: list[Any] = []
        self.found: list[Violation] = []
        self.trace: list[tuple[Any, ...]] = []
        self.serve: Callable[[Any], None] = lambda message: None
        self.respawn: Callable[[], None] = lambda: None

    def lease_time(self) -> LeaseTime:
        """The clock that leases are measured with."""
        return LeaseTime("simulated", self.ms + self.clock_error_ms)

    def spawn(
        self, kind: str, host: str, body: Callable[[Process], Steps], *, parent: Process | None = None
    ) -> Process:
        """Starts a process."""
        process = Process(kind, host, parent)
        process.steps = body(process)
        self.processes.append(process)
        return process

    def send(self, receiver: Process | None, message: Any) -> None:
        """Puts a message on its way; to None: to the API, whichever process that is when it arrives."""
        self.network.append((receiver, message))

    def write(self, change: Callable[[Any], T], *, by: tuple[str, int] | None = None) -> T:
        """A transaction. Raises StoreUnavailable if the store is away, or does not say that it has committed.

        Args:
            by: experiment and epoch of the driver that writes.
        """
        luck = self.rng.random() if self.is_faulty else 1.0
        if luck < _P_AWAY:
            raise StoreUnavailable("the store is away")
        result = self.store.run(change)
        if by is not None:
            with self.store.read() as work:
                current = work.experiments.get(by[0]).epoch
            if current != by[1]:
                self.violation("I2", f"a driver of epoch {by[1]} wrote while epoch {current} was the current one")
        if luck < _P_AWAY + _P_UNTOLD:
            raise StoreUnavailable("the connection was lost during the commit")
        return result

    def patiently(self, change: Callable[[Any], T], *, by: tuple[str, int] | None = None) -> Generator[None, None, T]:
        """A transaction, again until the store has taken it."""
        while True:
            yield
            try:
                return self.write(change, by=by)
            except StoreUnavailable:
                continue

    def read(self, question: Callable[[Any], T]) -> T:
        """What the store knows."""
        with self.store.read() as work:
            return question(work)

    def kill(self, process: Process) -> None:
        """Ends a process without a word."""
        process.is_alive = False

    def alive(self, *kinds: str) -> list[Process]:
        """The processes of some kinds."""
        return [process for process in self.processes if process.is_alive and process.kind in kinds]

    def violation(self, invariant: str, what: str) -> None:
        """Notes what must not happen."""
        self.found.append(Violation(invariant, what))

    def rage(self, num_steps: int) -> None:
        """Lets things happen in any order, and break."""
        for _ in range(num_steps):
            luck = self.rng.random()
            self.ms += self.rng.randrange(_MAX_STEP_MS)
            if luck < _P_FAULT and self.is_faulty:
                self._break_something()
                self.respawn()
            elif self.network and luck < _P_FAULT + _P_DELIVER:
                self._deliver(self.rng.randrange(len(self.network)))
            else:
                self._advance(self.rng.choice(self.processes))

    def heal(self, is_over: Callable[[], bool]) -> bool:
        """Nothing breaks any more; returns whether everything came to its end, within 600 rounds."""
        self.is_faulty, self.clock_error_ms = False, 0
        self.respawn()
        for number in range(_HEALING_ROUNDS):
            self.ms += _ROUND_MS
            for _ in range(len(self.network)):
                self._deliver(0)
            for process in list(self.processes):
                if process.kind != "daemon" or number % 3 == 0:
                    self._advance(process)
            if number % 8 == 0 and is_over():
                return True
        return False

    def _advance(self, process: Process) -> None:
        if self.is_faulty and process.frozen_until_ms > self.ms:
            return
        if process.parent is not None and not process.parent.is_alive:
            # A trial's process notices that its driver is gone, but not at once; a driver's watch is a thread of it.
            late = process.kind == "trial" and self.is_faulty and self.rng.random() < 0.7
            process.is_alive = process.is_alive and late
        assert process.steps is not None
        if process.is_alive:
            try:
                next(process.steps)
            except StopIteration:
                process.is_alive = False
        if not process.is_alive:
            self.processes.remove(process)

    def _deliver(self, index: int) -> None:
        receiver, message = self.network[index]
        luck = self.rng.random() if self.is_faulty else 1.0
        if luck >= _P_DUPLICATE:
            del self.network[index]
        if not _P_DUPLICATE <= luck < _P_DUPLICATE + _P_DROP:
            if receiver is None:
                self.serve(message)
            elif receiver.is_alive:
                receiver.inbox.append(message)

    def _break_something(self) -> None:
        what = self.rng.choice(self.faults)
        self.trace.append(("fault", what))
        if what == "ray":
            self.ray = ServiceState.ABSENT
            for process in self.alive("driver", "trial"):
                self.kill(process)
        elif what == "machine":
            self.ray = ServiceState.ABSENT
            for process in self.alive("api", "daemon", "driver", "trial"):
                self.kill(process)
        elif what == "pause":
            self.ms += self.rng.choice((20_000, 100_000))
        elif what == "freeze":
            drivers = self.alive("driver")
            if drivers:
                driver = self.rng.choice(drivers)
                for process in self.processes:
                    if driver in (process, process.parent):
                        process.frozen_until_ms = self.ms + self.rng.choice((10_000, 30_000, 60_000))
        elif what == "clock":
            self.clock_error_ms = self.rng.choice((-_DAY_MS, -10_000, 10_000, _DAY_MS))
        elif what == "damage":
            whole = [folder for folder, (_, _, status) in self.disk.checkpoints.items() if status == "whole"]
            if whole:
                folder = self.rng.choice(whole)
                self.disk.checkpoints[folder] = (*self.disk.checkpoints[folder][:2], "damaged")
        else:
            victims = self.alive(what)
            if victims:
                self.kill(self.rng.choice(victims))


FAULTS = (
    "api",
    "daemon",
    "daemon",
    "driver",
    "driver",
    "trial",
    "trial",
    "ray",
    "machine",
    "freeze",
    "freeze",
    "pause",
    "clock",
    "damage",
)
