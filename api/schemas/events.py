"""The history of an experiment."""

from typing import Any

from api.schemas.wire import Answer, EpochMs


class Event(Answer):
    """One thing that happened. The stream and the pages carry the same events in order of `id`."""

    id: int
    at_ms: EpochMs
    kind: str
    """`experiment.state`, `trial.proposed`, `trial.state`, `run.state`, `rung.arrived`, `rung.decided`,
    `checkpoint.committed`, `evaluation`, `spike`, `alarm`, `command.*`."""
    experiment_id: str | None
    trial_id: str | None
    run_id: str | None
    data: dict[str, Any]


class EventPage(Answer):
    """Events after a given one, oldest first."""

    items: list[Event]
    next_after: int
    """Pass it as `after` to go on; equal to the one given while nothing new happened."""
    finished: bool
    """The experiment is over and these are its last events."""
