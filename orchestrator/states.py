"""States of experiments, trials and runs, and the one table of legal moves.

`failed` is deterministic (bad config, diverged, out of memory) and not retried. `lost` is infrastructure (killed
process, dead node): retried, and never told to the sampler. `infeasible` is a point that cannot run: told to the
sampler as such.
"""

from collections.abc import Mapping
from enum import StrEnum

from orchestrator.errors import IllegalTransition


class ExperimentState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TrialState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    INFEASIBLE = "infeasible"
    CANCELLED = "cancelled"


class RunState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"
    PRUNED = "pruned"
    FAILED = "failed"
    LOST = "lost"
    CANCELLED = "cancelled"


class Cause(StrEnum):
    """Why a trial or a run ended as it did; `None` where it simply completed."""

    ASHA = "asha"
    HYPERBAND = "hyperband"
    MEDIAN = "median"
    PATIENCE = "patience"
    PBT = "pbt"
    STOP_RULE = "stop_rule"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    INVALID_CONFIG = "invalid_config"
    DOES_NOT_FIT = "does_not_fit"
    DATA_INVALID = "data_invalid"
    ERROR = "error"
    PROCESS_LOST = "process_lost"
    RETRIES_EXHAUSTED = "retries_exhausted"
    USER = "user"


State = ExperimentState | TrialState | RunState

_E, _T, _R = ExperimentState, TrialState, RunState

# One table per kind: members of two StrEnums with the same word are equal, so one dict could not hold them all.
TRANSITIONS: Mapping[type[State], Mapping[State, frozenset[State]]] = {
    ExperimentState: {
        _E.QUEUED: frozenset({_E.RUNNING, _E.PAUSED, _E.CANCELLING, _E.CANCELLED, _E.FAILED}),
        _E.RUNNING: frozenset({_E.COMPLETED, _E.FAILED, _E.PAUSING, _E.CANCELLING}),
        _E.PAUSING: frozenset({_E.PAUSED, _E.CANCELLING, _E.COMPLETED, _E.FAILED}),
        _E.PAUSED: frozenset({_E.QUEUED, _E.CANCELLING, _E.CANCELLED}),
        _E.CANCELLING: frozenset({_E.CANCELLED}),
        _E.COMPLETED: frozenset(),
        _E.FAILED: frozenset(),
        _E.CANCELLED: frozenset(),
    },
    TrialState: {
        _T.QUEUED: frozenset({_T.RUNNING, _T.INFEASIBLE, _T.CANCELLED}),
        _T.RUNNING: frozenset({_T.COMPLETED, _T.PRUNED, _T.FAILED, _T.INFEASIBLE, _T.CANCELLED, _T.RETRYING}),
        _T.RETRYING: frozenset({_T.RUNNING, _T.PRUNED, _T.FAILED, _T.CANCELLED}),
        _T.COMPLETED: frozenset(),
        _T.PRUNED: frozenset(),
        _T.FAILED: frozenset(),
        _T.INFEASIBLE: frozenset(),
        _T.CANCELLED: frozenset(),
    },
    RunState: {
        _R.STARTING: frozenset({_R.RUNNING, _R.FAILED, _R.LOST, _R.CANCELLED}),
        _R.RUNNING: frozenset({_R.COMPLETED, _R.PRUNED, _R.FAILED, _R.LOST, _R.CANCELLED}),
        _R.COMPLETED: frozenset(),
        _R.PRUNED: frozenset(),
        _R.FAILED: frozenset(),
        _R.LOST: frozenset(),
        _R.CANCELLED: frozenset(),
    },
}


def successors(state: State) -> frozenset[State]:
    """The states that may come right after `state`."""
    return TRANSITIONS[type(state)][state]


def is_terminal(state: State) -> bool:
    """True if nothing may follow `state`."""
    return not successors(state)


def check_transition(current: State, following: State) -> None:
    """Raises IllegalTransition unless `following` may come right after `current`."""
    allowed = successors(current)
    if type(following) is not type(current) or following not in allowed:
        names = ", ".join(sorted(allowed)) or "nothing: it is final"
        raise IllegalTransition(
            f"{type(current).__name__} cannot go from {current.value} to {following.value}; after {current.value} "
            f"may come: {names}"
        )
