"""What all repositories share: the connection, the clock, and the one way to change a state."""

from functools import cache
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, Update, bindparam, text, update

from orchestrator.errors import IllegalTransition, NotFound
from orchestrator.states import ExperimentState, RunState, State, TrialState, check_transition
from orchestrator.store.models import Base, ExperimentRow, RunRow, TrialRow

if TYPE_CHECKING:
    from orchestrator.store.work import Work

_ROWS: dict[type[State], tuple[str, type[ExperimentRow] | type[TrialRow] | type[RunRow]]] = {
    ExperimentState: ("experiment", ExperimentRow),
    TrialState: ("trial", TrialRow),
    RunState: ("run", RunRow),
}

LIVE = text("runs.state IN ('starting', 'running')")
"""Of a run that has not ended; written as in the condition of the index over live runs."""


def table_of(row: type[Base]) -> Table:
    """The table behind a row's class: a statement over it is made in half the time of one over the class."""
    return cast(Table, row.__table__)


@cache
def _guarded_update(row: type[Base], columns: tuple[str, ...]) -> Update:
    """Sets `columns` of the row `guarded_id` if its state is `before`. Building this takes longer than running it."""
    table = table_of(row)
    return (
        update(table)
        .where(table.c.id == bindparam("guarded_id"), table.c.state == bindparam("before"))
        .values({name: bindparam(name) for name in columns})
    )


class Repository:
    """A table's questions and changes within one unit of work. Repositories never commit."""

    def __init__(self, work: "Work") -> None:
        self._work = work
        self._connection = work.connection

    def _now(self) -> int:
        return self._work.clock()

    def _move(
        self,
        entity_id: str,
        current: State,
        following: State,
        *,
        reason: str,
        experiment_id: str,
        trial_id: str | None = None,
        values: dict[str, Any] | None = None,
        note: dict[str, Any] | None = None,
    ) -> int:
        """Changes a state: one UPDATE guarded by the old state, and one event. Returns the time it is stamped with.

        Args:
            values: further columns to set.
            note: further fields of the event's data.
        """
        check_transition(current, following)
        word, row = _ROWS[type(current)]
        now = self._now()
        columns = {"state": following.value, "reason": reason, "since_ms": now} | (values or {})
        changed = self._connection.execute(
            _guarded_update(row, tuple(sorted(columns))), columns | {"guarded_id": entity_id, "before": current.value}
        ).rowcount
        if changed != 1:
            raise IllegalTransition(f"{word} {entity_id} is no longer {current.value}; read it again")
        if word == "experiment":
            self._work.experiments.changed(entity_id)
        self._work.events.add(
            f"{word}.state",
            experiment_id=experiment_id,
            trial_id=entity_id if word == "trial" else trial_id,
            run_id=entity_id if word == "run" else None,
            data={"from": current.value, "to": following.value, "reason": reason} | (note or {}),
        )
        return now


def missing(word: str, entity_id: str) -> NotFound:
    """The error for an id that nothing has."""
    return NotFound(f"there is no {word} {entity_id[:80]!r}")
