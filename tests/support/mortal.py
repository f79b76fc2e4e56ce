"""A database whose user is killed at a transaction of one's choice, just before it is committed or just after."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from orchestrator.store.session import Database
from orchestrator.store.work import Work

T = TypeVar("T")


class Killed(BaseException):
    """The end of a process that is not asked: nothing may catch it."""


class MortalDatabase(Database):
    """Passes everything on to `database` and counts transactions that may write; kills its user at one of them.

    Args:
        database: the real one.
        kill_at: the transaction to die at, counted from 1; None to live.
        when: `before` its commit, so that nothing of it is there, or `after` it, so that nobody is told.
    """

    def __init__(
        self, database: Database, *, kill_at: int | None = None, when: Literal["before", "after"] = "before"
    ) -> None:
        self._database = database
        self._kill_at = kill_at
        self._when = when
        self.num_transactions = 0

    @contextmanager
    def transaction(self) -> Iterator[Work]:
        """See `Database.transaction`."""
        self.num_transactions += 1
        is_last = self.num_transactions == self._kill_at
        with self._database.transaction() as work:
            yield work
            if is_last and self._when == "before":
                raise Killed
        if is_last:
            raise Killed

    @contextmanager
    def read(self) -> Iterator[Work]:
        """See `Database.read`."""
        with self._database.read() as work:
            yield work

    def run(self, function: Callable[[Work], T]) -> T:
        """See `Database.run`; nobody else is in the way here."""
        with self.transaction() as work:
            return function(work)

    def close(self) -> None:
        """See `Database.close`."""
        self._database.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)
