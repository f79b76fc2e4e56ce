"""The daemon's plan: every situation is a view that is written down, every answer a list of actions."""

from dataclasses import replace

import pytest

from orchestrator.execution.plan import (
    MAX_FRUITLESS_LAUNCHES,
    Cancel,
    DriverView,
    EndDriver,
    EndService,
    ExperimentView,
    GiveUp,
    Launch,
    Pause,
    ServiceState,
    ServiceView,
    StartService,
    plan,
)
from orchestrator.states import ExperimentState, is_terminal

READY = [
    ServiceView(name="ray", state=ServiceState.READY),
    ServiceView(name="mlflow", state=ServiceState.READY),
    ServiceView(name="forwarder", state=ServiceState.READY),
]
QUEUED = ExperimentView(id="exp_1", state=ExperimentState.QUEUED, epoch=0, has_live_lease=False)
DRIVEN = ExperimentView(
    id="exp_1",
    state=ExperimentState.RUNNING,
    epoch=1,
    has_live_lease=True,
    driver=DriverView(epoch=1, is_alive=True),
)
DEAD = replace(DRIVEN, driver=DriverView(epoch=1, is_alive=False))


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan(READY, [DRIVEN]) == []


def test_queued_experiment_gets_a_driver() -> None:
    assert plan(READY, [QUEUED]) == [Launch("exp_1", release=False)]


def test_no_driver_is_launched_before_ray_is_ready() -> None:
    services = [replace(READY[0], state=ServiceState.STARTING), *READY[1:]]
    assert plan(services, [QUEUED]) == []


def test_worn_service_is_ended_when_no_driver_needs_it_and_nobody_is_launched_before() -> None:
    services = [replace(READY[0], is_worn=True), *READY[1:]]
    assert plan(services, [QUEUED, DEAD]) == [EndService("ray")]
    assert plan(services, [QUEUED, replace(DRIVEN, id="exp_2")]) == [Launch("exp_1", release=False)]
    ended = [replace(READY[0], state=ServiceState.ABSENT, since_start_s=9.0), *READY[1:]]
    assert plan(ended, [QUEUED]) == [StartService("ray")]


def test_mlflow_delays_no_experiment() -> None:
    services = [READY[0], replace(READY[1], state=ServiceState.ABSENT, num_failures=9, since_start_s=0.0)]
    assert plan(services, [QUEUED]) == [Launch("exp_1", release=False)]


def test_services_start_ray_first() -> None:
    absent = [replace(service, state=ServiceState.ABSENT) for service in READY]
    assert plan(absent, []) == [StartService("ray")]
    absent[0] = replace(absent[0], state=ServiceState.STARTING)
    assert plan(absent, []) == []
    absent[0] = replace(absent[0], state=ServiceState.READY)
    assert plan(absent, []) == [StartService("mlflow")]


@pytest.mark.parametrize(("since_start_s", "starts"), [(0.5, False), (5.0, True)])
def test_service_that_keeps_ending_is_restarted_after_a_while(since_start_s: float, *, starts: bool) -> None:
    services = [ServiceView(name="ray", state=ServiceState.ABSENT, num_failures=4, since_start_s=since_start_s)]
    assert plan(services, []) == ([StartService("ray")] if starts else [])


def test_dead_driver_is_replaced_without_waiting_for_its_lease() -> None:
    assert plan(READY, [DEAD]) == [Launch("exp_1", release=True)]


def test_experiment_without_a_lease_is_taken_over() -> None:
    assert plan(READY, [replace(DRIVEN, driver=None, has_live_lease=False)]) == [Launch("exp_1", release=False)]


@pytest.mark.parametrize("driver", [DRIVEN.driver, None])
def test_lease_that_ends_all_at_once_may_be_a_step_of_the_clock(driver: DriverView | None) -> None:
    stepped = replace(DRIVEN, driver=driver, has_live_lease=False, lease_ended_s=1.0)
    assert plan(READY, [stepped]) == []
    assert plan(READY, [replace(stepped, lease_ended_s=5.0)]) != []


def test_dead_driver_is_replaced_at_once_whatever_its_lease() -> None:
    assert plan(READY, [replace(DEAD, has_live_lease=False, lease_ended_s=0.0)]) == [Launch("exp_1", release=False)]


def test_experiment_driven_elsewhere_is_left_alone() -> None:
    assert plan(READY, [replace(DRIVEN, driver=None)]) == []
    assert plan(READY, [replace(DEAD, epoch=2)]) == [], "a newer driver elsewhere holds the lease"


def test_driver_that_hangs_or_is_not_in_charge_is_ended_first() -> None:
    assert plan(READY, [replace(DRIVEN, has_live_lease=False)]) == [EndDriver("exp_1")]
    assert plan(READY, [replace(DRIVEN, epoch=2)]) == [EndDriver("exp_1")]


def test_cancelling_without_a_driver_is_settled_here_even_without_ray() -> None:
    cancelling = replace(DEAD, state=ExperimentState.CANCELLING)
    assert plan([replace(READY[0], state=ServiceState.STARTING)], [cancelling]) == [Cancel("exp_1", release=True)]


def test_cancelling_with_a_driver_is_left_to_it() -> None:
    assert plan(READY, [replace(DRIVEN, state=ExperimentState.CANCELLING)]) == []


def test_crash_loop_is_broken_with_a_reason() -> None:
    crashing = replace(DEAD, num_fruitless=MAX_FRUITLESS_LAUNCHES, since_launch_s=100.0)
    (action,) = plan(READY, [crashing])
    assert isinstance(action, GiveUp)
    assert "5 times in a row" in action.reason


def test_restarts_come_slower_and_slower() -> None:
    waits = []
    for num_fruitless in range(1, MAX_FRUITLESS_LAUNCHES):
        crashing = replace(DEAD, num_fruitless=num_fruitless)
        tried = [0.0, 1.0, 2.0, 4.0, 8.0]
        waits.append(next(wait for wait in tried if plan(READY, [replace(crashing, since_launch_s=wait)])))
    assert waits == [0.0, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("state", [state for state in ExperimentState if is_terminal(state)])
def test_ended_experiments_need_nothing(state: ExperimentState) -> None:
    assert plan(READY, [replace(DEAD, state=state)]) == []


def test_applying_the_plan_settles() -> None:
    """Whatever the plan asked for being done, it asks for nothing more."""
    for view in (QUEUED, DEAD, replace(DRIVEN, has_live_lease=False), replace(DRIVEN, epoch=2)):
        for _ in range(3):
            for action in plan(READY, [view]):
                if isinstance(action, Launch):
                    epoch = view.epoch + 1
                    view = replace(
                        DRIVEN, epoch=epoch, driver=DriverView(epoch=epoch, is_alive=True), since_launch_s=0.0
                    )
                elif isinstance(action, EndDriver):
                    assert view.driver is not None
                    view = replace(view, driver=replace(view.driver, is_alive=False), has_live_lease=False)
        assert plan(READY, [view]) == []


def test_queued_experiment_waits_for_its_first_place() -> None:
    assert plan(READY, [replace(QUEUED, is_admitted=False)]) == []
    # One that runs keeps its driver, whoever has the places now.
    assert plan(READY, [replace(DEAD, is_admitted=False)]) == [Launch("exp_1", release=True)]


def test_pause_is_left_to_a_driver_that_lives_and_done_in_place_of_a_dead_one() -> None:
    assert plan(READY, [replace(DRIVEN, state=ExperimentState.PAUSING)]) == []
    assert plan(READY, [replace(DEAD, state=ExperimentState.PAUSING)]) == [Pause("exp_1", release=True)]
    assert plan([], [replace(DEAD, state=ExperimentState.PAUSING)]) == [Pause("exp_1", release=True)], "without Ray"
