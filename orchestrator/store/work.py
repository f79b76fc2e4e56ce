"""Work: one unit of work. All its repositories share one transaction, which whoever opened it commits or rolls back."""

from collections.abc import Callable
from functools import cached_property

from sqlalchemy import Connection

from orchestrator.store.analyses import Analyses
from orchestrator.store.checkpoints import Checkpoints
from orchestrator.store.clock import Clock, IdSource, LeaseTime
from orchestrator.store.commands import Commands
from orchestrator.store.control import Control
from orchestrator.store.events import Events
from orchestrator.store.experiments import Experiments
from orchestrator.store.forks import Forks
from orchestrator.store.queue import Queue
from orchestrator.store.rungs import Rungs
from orchestrator.store.runs import Runs
from orchestrator.store.services import Services
from orchestrator.store.tracking import Tracking
from orchestrator.store.trials import Trials
from orchestrator.store.warm_starts import WarmStarts


class Work:
    """The repositories over one connection in a transaction.

    Args:
        connection: in a transaction already.
        clock: stamps the rows.
        lease_time: the clock that leases are measured with.
        ids: source of new ids.
    """

    def __init__(
        self, connection: Connection, *, clock: Clock, lease_time: Callable[[], LeaseTime], ids: IdSource
    ) -> None:
        self.connection = connection
        self.clock = clock
        self.lease_time = lease_time
        self.ids = ids

    def flush(self) -> None:
        """Writes what the repositories keep to be written together. Whoever commits calls this first."""
        self.events.flush()

    @cached_property
    def experiments(self) -> Experiments:
        """Experiments, their leases and epochs."""
        return Experiments(self)

    @cached_property
    def trials(self) -> Trials:
        """Trials: proposed, lost, settled, and the history that proposals are made from."""
        return Trials(self)

    @cached_property
    def runs(self) -> Runs:
        """Executions of trials."""
        return Runs(self)

    @cached_property
    def rungs(self) -> Rungs:
        """Arrivals at rungs and what was decided on them."""
        return Rungs(self)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Committed checkpoints."""
        return Checkpoints(self)

    @cached_property
    def forks(self) -> Forks:
        """Which experiments go on from which checkpoints."""
        return Forks(self)

    @cached_property
    def warm_starts(self) -> WarmStarts:
        """What searches learned from other experiments."""
        return WarmStarts(self)

    @cached_property
    def analyses(self) -> Analyses:
        """What was worked out of experiments' trials."""
        return Analyses(self)

    @cached_property
    def events(self) -> Events:
        """The append-only history."""
        return Events(self)

    @cached_property
    def commands(self) -> Commands:
        """Wishes of users."""
        return Commands(self)

    @cached_property
    def control(self) -> Control:
        """Pausing, cancelling, trying again: the verbs of users."""
        return Control(self)

    @cached_property
    def queue(self) -> Queue:
        """Who waits for places of the cluster, and who may start next."""
        return Queue(self)

    @cached_property
    def tracking(self) -> Tracking:
        """How far trials have been forwarded to MLflow."""
        return Tracking(self)

    @cached_property
    def services(self) -> Services:
        """The processes of this installation."""
        return Services(self)
