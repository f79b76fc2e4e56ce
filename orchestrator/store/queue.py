"""The queue: which experiments want places of the cluster, which hold some, and who may start next.

The decision itself is `orchestrator.allocation`, a pure function; here are the rows it is made from. A driver asks in
the transaction that starts the run, under a lock that all drivers take, so that two of them never take the last place.
Whose driver is gone holds nothing: its runs end with it, and their places return when its lease does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, case, func, select, text, update

from orchestrator.allocation import Amounts, Claimant, Need, Verdict, allocate
from orchestrator.capacity import NodeCapacity, capacity_of, need_of
from orchestrator.search.grid import num_search_trials
from orchestrator.spec import ExperimentSpec
from orchestrator.states import ExperimentState, TrialState
from orchestrator.store.experiments import LONGEST_LEASE_MS
from orchestrator.store.models import ExperimentRow, RunRow, TrialRow
from orchestrator.store.records import TrialKind
from orchestrator.store.repository import LIVE, Repository

# Any number that nothing else in the database locks.
_TURN_LOCK = 0x65766F
_STALE_MS = 20_000
"""The orchestrator reports every few seconds; one that is silent for so long launches nothing."""
_ACTIVE = (
    ExperimentState.QUEUED,
    ExperimentState.RUNNING,
    ExperimentState.PAUSING,
    ExperimentState.CANCELLING,
)
_OPEN = (TrialState.QUEUED.value, TrialState.RUNNING.value, TrialState.RETRYING.value)
_MAX_KNOWN = 1000
# Built once: building a statement takes longer than running it.
_STANDING = (
    select(
        ExperimentRow.id,
        ExperimentRow.state,
        ExperimentRow.owner,
        ExperimentRow.priority,
        ExperimentRow.last_turn,
        ExperimentRow.wants_run,
        ExperimentRow.spec_version,
        ExperimentRow.lease_boot_id,
        ExperimentRow.lease_until_ms,
    )
    .where(ExperimentRow.state.in_([state.value for state in _ACTIVE]))
    .order_by(ExperimentRow.id)
)
_NUM_RUNNING = (
    select(TrialRow.experiment_id, func.count())
    .join(RunRow, RunRow.trial_id == TrialRow.id)
    .where(LIVE, TrialRow.experiment_id.in_(bindparam("experiments", expanding=True)))
    .group_by(TrialRow.experiment_id)
)
_TOOK = (
    update(ExperimentRow)
    .where(ExperimentRow.id == bindparam("experiment"))
    .values(last_turn=select(func.coalesce(func.max(ExperimentRow.last_turn), 0) + 1).scalar_subquery(), wants_run=True)
)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a spec says of its trials: what each needs, how many there are to be, and how many at a time."""

    need: Need
    num_trials: int
    max_running: int | None


@dataclass(frozen=True, kw_only=True)
class Standings:
    """How the experiments stand in line.

    Attributes:
        nodes: of the cluster; () if it is not known.
        is_served: an orchestrator reports, so that what is queued gets a driver.
        claimants: every experiment that holds places or wants some, by id.
        verdicts: of those that want some, in the order in which places are given out.
        num_left: of those, trials that have not started, or wait to go on; {} while there is only one of them.
    """

    nodes: tuple[NodeCapacity, ...]
    is_served: bool
    claimants: Mapping[str, Claimant] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    num_left: Mapping[str, int] = field(default_factory=dict)


class Queue(Repository):
    """Reads who waits, and gives turns."""

    def standings(self, *, nodes: Sequence[NodeCapacity] = (), asking: str | None = None) -> Standings:
        """How the experiments stand in line now.

        Args:
            nodes: of the cluster, where the `ray` service does not tell.
            asking: an experiment whose driver is there and wants a place, whatever its row says.
        """
        services = self._work.services.named("orchestrator", "ray")
        service = services.get("orchestrator")
        is_served = service is not None and service.state != "stopped"
        is_served = is_served and self._now() - (0 if service is None else service.heartbeat_ms) < _STALE_MS
        known = capacity_of(services.get("ray"))
        nodes = tuple(nodes) if known is None else known.nodes
        claimants, num_left = self._claimants(is_served=is_served, asking=asking)
        verdicts = allocate([_amounts(node) for node in nodes], claimants) if nodes else ()
        return Standings(
            nodes=nodes,
            is_served=is_served,
            claimants={claimant.id: claimant for claimant in claimants},
            verdicts={verdict.id: verdict for verdict in verdicts},
            num_left=num_left,
        )

    def turn(
        self,
        experiment_id: str,
        *,
        epoch: int,
        nodes: Sequence[NodeCapacity] = (),
        known: Standings | None = None,
    ) -> Verdict:
        """Whether a trial of the experiment may start in this transaction; nobody else gets a turn until it ends.

        The caller starts the run, and then calls `took`.

        Args:
            known: how the experiments stood when this transaction, already holding the experiment, last asked. Where
                it is the only one that writes, they stand like that still.

        Raises:
            Fenced: `epoch` is not the current one.
        """
        self._work.experiments.hold(experiment_id, epoch)
        if self._connection.dialect.name == "postgresql":
            # After the experiment's row and before the first event, as everywhere. SQLite has one writer anyway.
            self._connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _TURN_LOCK})
            known = None
        standings = known or self.standings(nodes=nodes, asking=experiment_id)
        # Of a cluster that nobody has described, Ray itself gives the places.
        return standings.verdicts.get(experiment_id, Verdict(id=experiment_id, num_starts=1))

    def took(self, experiment_id: str) -> None:
        """Notes that the experiment has had its turn. In the transaction of `turn`."""
        self._connection.execute(_TOOK, {"experiment": experiment_id})

    def want(self, experiment_id: str, *, epoch: int, wants_run: bool) -> None:
        """Notes whether the driver would start a run if it got a place."""
        self._connection.execute(
            update(ExperimentRow)
            .where(ExperimentRow.id == experiment_id, ExperimentRow.epoch == epoch)
            .values(wants_run=wants_run)
        )

    def _claimants(self, *, is_served: bool, asking: str | None) -> tuple[list[Claimant], dict[str, int]]:
        time = self._work.lease_time()
        rows = self._connection.execute(_STANDING).all()
        is_driven = {
            row.id: row.id == asking
            or (row.lease_boot_id == time.boot_id and 0 < (row.lease_until_ms or 0) - time.ms <= LONGEST_LEASE_MS)
            for row in rows
        }
        wanting = {
            row.id
            for row in rows
            if row.id == asking
            or (row.state == ExperimentState.RUNNING.value and is_driven[row.id] and row.wants_run)
            # What has no driver gets one from the orchestrator, if there is one.
            or (is_served and not is_driven[row.id] and row.state in ("queued", "running"))
        }
        planned = self._planned({row.id: row.spec_version for row in rows})
        num_running = self._num_running([id for id, driven in is_driven.items() if driven])
        num_left = self._num_left(planned, wanting, num_running) if len(wanting) > 1 else {}
        claimants = [
            Claimant(
                id=row.id,
                owner=row.owner,
                priority=row.priority,
                need=planned[row.id].need,
                num_running=num_running.get(row.id, 0),
                num_wanted=max(int(row.id == asking), num_left.get(row.id, 1)) if row.id in wanting else 0,
                max_running=planned[row.id].max_running,
                last_turn=row.last_turn,
            )
            for row in rows
        ]
        return claimants, num_left

    def _num_running(self, experiment_ids: Sequence[str]) -> dict[str, int]:
        rows = self._connection.execute(_NUM_RUNNING, {"experiments": experiment_ids})
        return {row[0]: row[1] for row in rows}

    def _num_left(
        self, planned: Mapping[str, Planned], wanting: set[str], num_running: Mapping[str, int]
    ) -> dict[str, int]:
        """How many more trials each experiment would start: those that wait, and those not proposed yet."""
        rows = self._connection.execute(
            select(
                TrialRow.experiment_id,
                func.sum(case((TrialRow.kind != TrialKind.ADDED.value, 1), else_=0)),
                func.sum(case((TrialRow.state.in_(_OPEN), 1), else_=0)),
            )
            .where(TrialRow.experiment_id.in_(wanting))
            .group_by(TrialRow.experiment_id)
        )
        counts = {id: (int(num_proposed), int(num_open)) for id, num_proposed, num_open in rows}
        found: dict[str, int] = {}
        for id in wanting:
            num_proposed, num_open = counts.get(id, (0, 0))
            num_waiting = num_open - num_running.get(id, 0)
            found[id] = max(0, planned[id].num_trials - num_proposed) + num_waiting
        return found

    def _planned(self, versions: Mapping[str, int]) -> dict[str, Planned]:
        unknown = [id for id, version in versions.items() if (id, version) not in _known]
        if unknown:
            if len(_known) + len(unknown) > _MAX_KNOWN:
                _known.clear()
                unknown = list(versions)
            rows = self._connection.execute(
                select(ExperimentRow.id, ExperimentRow.spec).where(ExperimentRow.id.in_(unknown))
            )
            for id, spec in rows:
                _known[id, versions[id]] = planned_of(ExperimentSpec.model_validate(spec))
        return {id: _known[id, version] for id, version in versions.items()}


_known: dict[tuple[str, int], Planned] = {}
"""(experiment, version of its spec) -> what that says; a version never changes."""


def planned_of(spec: ExperimentSpec) -> Planned:
    """What a spec says of its trials."""
    return Planned(
        need=need_of(spec),
        num_trials=(num_search_trials(spec) + len(spec.baselines)) * spec.replicas,
        max_running=spec.max_parallel_trials,
    )


def _amounts(node: NodeCapacity) -> Amounts:
    return (node.cpus, node.gpus, node.memory_gib)
