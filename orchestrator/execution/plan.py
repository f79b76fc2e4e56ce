"""What the daemon does next: a pure function from what should be and what is to a list of actions.

No clock, no database, no processes: `plan` sees views and answers with actions, so every situation can be tested by
writing it down. It reacts to levels, not to events: an action that was lost (we were killed) comes out again next time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.states import ExperimentState

MAX_FRUITLESS_LAUNCHES = 5
"""Drivers that may die one after the other without the experiment getting on."""
_LEASE_GRACE_S = 5.0
"""A driver renews its lease every second. One that is over and not renewed for so long is over, whatever the clocks of
leases did; before that the clock may have been set."""
_MAX_BACKOFF_S = 30.0
_NEEDS_DRIVER = (
    ExperimentState.QUEUED,
    ExperimentState.RUNNING,
    ExperimentState.PAUSING,
    ExperimentState.CANCELLING,
)


class ServiceState(StrEnum):
    """How a service of this installation is."""

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"


@dataclass(frozen=True, kw_only=True)
class ServiceView:
    """A process we keep running: `ray`, `mlflow` or `forwarder`.

    Attributes:
        num_failures: how often it ended since it was last ready.
        since_start_s: seconds since it was last started; None if it never was.
        is_worn: it runs, but has lost something that only a new start gives back; it is ended when nothing needs it.
    """

    name: str
    state: ServiceState
    num_failures: int = 0
    since_start_s: float | None = None
    is_worn: bool = False


@dataclass(frozen=True, kw_only=True)
class DriverView:
    """The last driver of an experiment on this host."""

    epoch: int
    is_alive: bool


@dataclass(frozen=True, kw_only=True)
class ExperimentView:
    """An experiment that has not ended.

    Attributes:
        epoch: the current one.
        has_live_lease: somebody has renewed it lately.
        lease_ended_s: since when, in seconds, the lease has been seen to be over; None if it lives or was given back.
        is_admitted: a trial of it would get a place now; a queued experiment gets no driver before.
        driver: its driver on this host; None if we know of none.
        num_fruitless: drivers launched in a row since the experiment last got on.
        since_launch_s: seconds since the last launch; None if there was none.
    """

    id: str
    state: ExperimentState
    epoch: int
    has_live_lease: bool
    lease_ended_s: float | None = None
    is_admitted: bool = True
    driver: DriverView | None = None
    num_fruitless: int = 0
    since_launch_s: float | None = None


@dataclass(frozen=True)
class StartService:
    """Start a process that is not there."""

    name: str


@dataclass(frozen=True)
class EndService:
    """End a process that is to be started anew."""

    name: str


@dataclass(frozen=True)
class EndDriver:
    """End a driver that is alive but not in charge any more, or no longer renews its lease."""

    experiment_id: str


@dataclass(frozen=True)
class Launch:
    """Claim the experiment under the next epoch and start a driver. `release`: the dead driver's lease first."""

    experiment_id: str
    release: bool


@dataclass(frozen=True)
class Cancel:
    """Claim the experiment and end it as cancelled: there is no driver to do so."""

    experiment_id: str
    release: bool


@dataclass(frozen=True)
class Pause:
    """Claim the experiment and leave it paused: there is no driver to do so."""

    experiment_id: str
    release: bool


@dataclass(frozen=True)
class GiveUp:
    """Claim the experiment and end it as failed."""

    experiment_id: str
    release: bool
    reason: str


Action = StartService | EndService | EndDriver | Launch | Cancel | Pause | GiveUp


def plan(services: Sequence[ServiceView], experiments: Sequence[ExperimentView]) -> list[Action]:
    """The actions that bring what is closer to what should be; [] if all is well.

    Services start in the given order, each once those before it have been started at least; only Ray is waited for,
    by the experiments.
    """
    actions: list[Action] = []
    is_used = any(experiment.driver is not None and experiment.driver.is_alive for experiment in experiments)
    for service in services:
        if service.is_worn and not is_used:
            # Whoever waits gets a driver once there is a new one.
            return [EndService(service.name)]
        if service.state is ServiceState.ABSENT:
            if service.since_start_s is None or service.since_start_s >= _backoff_s(service.num_failures):
                actions.append(StartService(service.name))
            break
        if service.name == "ray" and service.state is ServiceState.STARTING:
            # What follows would only take its processor time, and none of it is of use without Ray.
            break
    ray_ready = any(service.name == "ray" and service.state is ServiceState.READY for service in services)
    for experiment in experiments:
        action = _next_for(experiment, ray_ready=ray_ready)
        if action is not None:
            actions.append(action)
    return actions


def _next_for(experiment: ExperimentView, *, ray_ready: bool) -> Action | None:
    if experiment.state not in _NEEDS_DRIVER:
        return None
    driver = experiment.driver
    may_be_driven = experiment.has_live_lease or (
        experiment.lease_ended_s is not None and experiment.lease_ended_s < _LEASE_GRACE_S
    )
    if driver is not None and driver.is_alive:
        in_charge = driver.epoch == experiment.epoch and may_be_driven
        return None if in_charge else EndDriver(experiment.id)
    is_ours = driver is not None and driver.epoch == experiment.epoch
    if may_be_driven and not is_ours:
        return None  # somebody elsewhere drives it
    release = experiment.has_live_lease
    if experiment.state is ExperimentState.CANCELLING:
        return Cancel(experiment.id, release)
    if experiment.state is ExperimentState.PAUSING:
        return Pause(experiment.id, release)
    if experiment.state is ExperimentState.QUEUED and not experiment.is_admitted:
        return None
    if experiment.num_fruitless >= MAX_FRUITLESS_LAUNCHES:
        return GiveUp(
            experiment.id,
            release,
            f"its driver ended {experiment.num_fruitless} times in a row without getting on; "
            f"see the log of {experiment.id}",
        )
    too_soon = experiment.since_launch_s is not None and experiment.since_launch_s < _backoff_s(
        experiment.num_fruitless
    )
    return None if too_soon or not ray_ready else Launch(experiment.id, release)


def _backoff_s(num_failures: int) -> float:
    """0 s at first, then 1, 2, 4 ... up to half a minute."""
    return 0.0 if num_failures <= 1 else min(2.0 ** (num_failures - 2), _MAX_BACKOFF_S)
