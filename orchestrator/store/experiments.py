"""Experiments: submitting, listing, and who may drive one (lease and fencing epoch)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, bindparam, func, insert, or_, select, text, tuple_, update

from orchestrator.errors import Fenced, IdempotencyKeyReused, IllegalTransition
from orchestrator.search.points import replica_config
from orchestrator.search.space import baseline_configs
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState, check_transition, is_terminal
from orchestrator.store.models import ExperimentRow, SpecVersionRow, TrialRow
from orchestrator.store.paging import check_limit, decode_cursor, encode_cursor, page
from orchestrator.store.records import ExperimentRecord, Page, Proposal, Submission, TrialKind
from orchestrator.store.repository import Repository, missing

if TYPE_CHECKING:
    from orchestrator.store.work import Work

LONGEST_LEASE_MS = 120_000
"""A lease that has longer to live was given out before the clock was set back, and is dead."""
CANCEL_WITHIN_S = 30.0
"""Time for running trials to write a checkpoint when their experiment is cancelled."""
_DRIVEN = (ExperimentState.RUNNING, ExperimentState.PAUSING, ExperimentState.CANCELLING)
"""States in which an experiment has, or should have, a driver."""
# Asked with every report and every trial; building a statement anew takes longer than running it.
_LOCK = (
    select(ExperimentRow.state, ExperimentRow.epoch, ExperimentRow.lease_boot_id, ExperimentRow.lease_until_ms)
    .where(ExperimentRow.id == bindparam("id"))
    .with_for_update()  # PostgreSQL; SQLite's writers hold the whole file already
)
_NEXT_SEQUENCE = (
    update(ExperimentRow)
    .where(ExperimentRow.id == bindparam("experiment"))
    .values(sequence=ExperimentRow.sequence + 1)
    .returning(ExperimentRow.sequence)
)


class Experiments(Repository):
    """Writes and reads experiments. Methods with an `epoch` raise Fenced unless it is the current one."""

    def __init__(self, work: "Work") -> None:
        super().__init__(work)
        self._held: dict[str, tuple[int, ExperimentState]] = {}
        """What this transaction holds, with epoch and state: nobody else changes either until it ends."""

    def submit(
        self,
        spec: ExperimentSpec,
        *,
        document: dict[str, Any],
        warnings: Sequence[str] = (),
        key: str | None = None,
        fingerprint: str | None = None,
        owner: str = "local",
    ) -> Submission:
        """Queues an experiment, with its baselines as its first trials.

        Args:
            document: what the user sent.
            key: the Idempotency-Key; the same key again returns the experiment that is there.
            fingerprint: hash of the request's body, to tell a repetition from another request under an old key.
            owner: who shares the cluster with the other owners.

        Raises:
            IdempotencyKeyReused: the key came with another fingerprint before.
            SpecRejected: an experiment of `warm_start` is not there.
        """
        if key is not None:
            if self._connection.dialect.name == "postgresql":
                # Two submits under one key take turns from here on; SQLite's writers do anyway.
                self._connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"), {"key": key})
            there = self._connection.execute(
                select(ExperimentRow.id, ExperimentRow.idempotency_fingerprint).where(
                    ExperimentRow.idempotency_key == key
                )
            ).one_or_none()
            if there is not None:
                if there.idempotency_fingerprint != fingerprint:
                    raise IdempotencyKeyReused(
                        f"key {key[:80]!r} was used for another request before ({there.id}); take a new key"
                    )
                return Submission(experiment=self.get(there.id), replayed=True)
        warm = self._work.warm_starts.found(spec)
        now = self._now()
        experiment_id = self._work.ids.new("exp")
        self._connection.execute(
            insert(ExperimentRow).values(
                id=experiment_id,
                name=spec.name,
                state=ExperimentState.QUEUED.value,
                reason="waiting for the orchestrator",
                since_ms=now,
                document=document,
                spec=spec.model_dump(mode="json"),
                warnings=[*warnings, *(() if warm is None else warm.warnings)],
                idempotency_key=key,
                idempotency_fingerprint=fingerprint,
                owner=owner,
                priority=spec.priority,
                # Behind whatever has waited since before the last turn that was given.
                last_turn=select(func.coalesce(func.max(ExperimentRow.last_turn), 0)).scalar_subquery(),
                created_at_ms=now,
            )
        )
        self._work.events.add(
            "experiment.state",
            experiment_id=experiment_id,
            data={"from": None, "to": ExperimentState.QUEUED.value, "name": spec.name},
        )
        if warm is not None:
            self._work.warm_starts.add(experiment_id, warm)
        baselines = [
            (label, replica_config(config, replica), point, replica)
            for point, (label, config) in enumerate(baseline_configs(spec))
            for replica in range(spec.replicas)
        ]
        for number, (label, config, point, replica) in enumerate(baselines):
            is_one_of_several = spec.replicas > 1
            self._work.trials.insert(
                experiment_id,
                number=number,
                kind=TrialKind.BASELINE,
                label=label,
                batch=None,
                epoch=0,
                sequence=0,
                proposal=Proposal(
                    params={},
                    config=config,
                    point=point if is_one_of_several else None,
                    replica=replica if is_one_of_several else None,
                ),
            )
        return Submission(experiment=self.get(experiment_id), replayed=False)

    def get(self, experiment_id: str) -> ExperimentRecord:
        """The experiment; raises NotFound."""
        records = self._records(ExperimentRow.id == experiment_id)
        if not records:
            raise missing("experiment", experiment_id)
        return records[0]

    def list(
        self, *, limit: int = 50, cursor: str | None = None, state: ExperimentState | None = None
    ) -> Page[ExperimentRecord]:
        """A page of experiments, newest first; only those in `state` if it is given. Raises InvalidCursor."""
        check_limit(limit)
        where: list[ColumnElement[bool]] = []
        if cursor is not None:
            at, key = decode_cursor(cursor)
            where.append(tuple_(ExperimentRow.created_at_ms, ExperimentRow.id) < tuple_(at, key))
        if state is not None:
            where.append(ExperimentRow.state == state.value)
        records = self._records(*where, limit=limit + 1)
        return page(records, limit, [encode_cursor(record.created_at_ms, record.id) for record in records])

    def claimable(self) -> tuple[str, ...]:
        """Ids of the experiments that need a driver: queued, or their driver's lease is dead. Oldest first."""
        time = self._work.lease_time()
        dead = or_(
            ExperimentRow.lease_until_ms.is_(None),
            ExperimentRow.lease_boot_id != time.boot_id,
            ExperimentRow.lease_until_ms <= time.ms,
            ExperimentRow.lease_until_ms > time.ms + LONGEST_LEASE_MS,
        )
        query = (
            select(ExperimentRow.id)
            .where(
                or_(
                    ExperimentRow.state == ExperimentState.QUEUED.value,
                    and_(ExperimentRow.state.in_([state.value for state in _DRIVEN]), dead),
                )
            )
            .order_by(ExperimentRow.created_at_ms, ExperimentRow.id)
        )
        return tuple(self._connection.execute(query).scalars())

    def claim(self, experiment_id: str, *, owner: str, ttl_s: float) -> int | None:
        """Takes an experiment that needs a driver, and returns the epoch that its driver writes under from now on.

        The old driver, should it still be there, is fenced off by this: its epoch is no longer current.

        Args:
            owner: who takes it, in words for people.
            ttl_s: how long the lease lives without being renewed.

        Returns:
            The new epoch, or None if the experiment needs no driver (another one was faster).
        """
        row = self._lock(experiment_id)
        time = self._work.lease_time()
        state = ExperimentState(row.state)
        remaining_ms = (row.lease_until_ms or 0) - time.ms
        is_live = row.lease_boot_id == time.boot_id and 0 < remaining_ms <= LONGEST_LEASE_MS
        if state is not ExperimentState.QUEUED and (state not in _DRIVEN or is_live):
            return None
        self.changed(experiment_id)
        epoch: int = row.epoch + 1
        lease = {
            "epoch": epoch,
            "lease_owner": owner,
            "lease_until_ms": time.ms + int(ttl_s * 1000),
            "lease_boot_id": time.boot_id,
            "wants_run": True,
        }
        if state is ExperimentState.QUEUED:
            self._move(
                experiment_id,
                state,
                ExperimentState.RUNNING,
                reason="",
                experiment_id=experiment_id,
                values=lease,
                note={"epoch": epoch},
            )
        else:
            self._connection.execute(update(ExperimentRow).where(ExperimentRow.id == experiment_id).values(**lease))
            self._work.events.add(
                "experiment.takeover", experiment_id=experiment_id, data={"epoch": epoch, "owner": owner}
            )
        return epoch

    def renew(self, experiment_id: str, *, epoch: int, ttl_s: float) -> ExperimentState:
        """Keeps the lease alive for another `ttl_s`; returns the state, e.g. that the experiment is to be cancelled."""
        state = ExperimentState(self._lock(experiment_id, epoch).state)
        if state in _DRIVEN:  # what has been settled meanwhile has no lease any more
            time = self._work.lease_time()
            self._connection.execute(
                update(ExperimentRow)
                .where(ExperimentRow.id == experiment_id, ExperimentRow.epoch == epoch)
                .values(lease_until_ms=time.ms + int(ttl_s * 1000), lease_boot_id=time.boot_id)
            )
        return state

    def release(self, experiment_id: str, *, epoch: int) -> None:
        """Ends the lease at once, so that the experiment can be claimed without waiting for its end."""
        self._lock(experiment_id, epoch)
        self._connection.execute(
            update(ExperimentRow)
            .where(ExperimentRow.id == experiment_id, ExperimentRow.epoch == epoch)
            .values(lease_owner=None, lease_until_ms=None, lease_boot_id=None)
        )

    def hold(self, experiment_id: str, epoch: int) -> ExperimentState:
        """Locks the experiment for the rest of the transaction and returns its state.

        Every write of a driver starts with this: it is the fence, and it makes writers of one experiment take turns.

        Raises:
            Fenced: `epoch` is not the current one, or the experiment has ended.
        """
        if self.is_held(experiment_id, epoch):
            return self._held[experiment_id][1]
        state = ExperimentState(self._lock(experiment_id, epoch).state)
        if is_terminal(state):
            raise Fenced(f"experiment {experiment_id} is {state.value}; nothing more is written to it")
        self._held[experiment_id] = epoch, state
        return state

    def is_held(self, experiment_id: str, epoch: int) -> bool:
        """Whether this transaction holds the experiment under `epoch` already: its rows are as they were read."""
        there = self._held.get(experiment_id)
        return there is not None and there[0] == epoch

    def changed(self, experiment_id: str) -> None:
        """Notes that this transaction has changed the experiment's state or epoch: who wants to hold it looks again."""
        self._held.pop(experiment_id, None)

    def lock(self, experiment_id: str) -> None:
        """Holds an experiment for the rest of the transaction, ended or not: its driver waits. Raises NotFound."""
        self._lock(experiment_id)

    def next_sequence(self, experiment_id: str) -> int:
        """The next number of what happens in this experiment. The caller holds it."""
        return self._connection.execute(_NEXT_SEQUENCE, {"experiment": experiment_id}).scalar_one()

    def settle(self, experiment_id: str, *, epoch: int, state: ExperimentState, reason: str = "") -> None:
        """Ends (or pauses) a driven experiment and its lease.

        Cancelled and failed experiments take their unsettled trials and live runs with them.

        Raises:
            IllegalTransition: not from the present state, or trials are left of an experiment said to be completed.
        """
        current = self.hold(experiment_id, epoch)
        self.conclude(experiment_id, current, state, reason=reason)

    def request_cancel(
        self, experiment_id: str, *, reason: str = "cancelled by the user", within_s: float = CANCEL_WITHIN_S
    ) -> ExperimentRecord:
        """Asks for an experiment to be cancelled; asking again changes nothing.

        What nobody drives is cancelled at once, else the driver stops its trials first.

        Args:
            within_s: time for the trials to write a checkpoint before they are killed; with 0 they are at once, also
                where a cancel is under way already.

        Raises:
            NotFound: there is no such experiment.
            IllegalTransition: it has completed or failed.
        """
        state = ExperimentState(self._lock(experiment_id).state)
        if state is ExperimentState.CANCELLED or (state is ExperimentState.CANCELLING and within_s > 0):
            return self.get(experiment_id)
        kind = "cancel" if within_s > 0 else "kill"
        if state is ExperimentState.CANCELLING:
            if not self._work.commands.pending(experiment_id, kind):
                self._work.commands.add(experiment_id, kind)
                self._connection.execute(
                    update(ExperimentRow).where(ExperimentRow.id == experiment_id).values(stop_within_s=0.0)
                )
            return self.get(experiment_id)
        check_transition(state, ExperimentState.CANCELLING)
        self._work.commands.add(experiment_id, kind, {"within_s": within_s})
        if state in (ExperimentState.QUEUED, ExperimentState.PAUSED):
            self.conclude(experiment_id, state, ExperimentState.CANCELLED, reason=reason)
        else:
            self._move(
                experiment_id,
                state,
                ExperimentState.CANCELLING,
                reason=reason,
                experiment_id=experiment_id,
                values={"stop_within_s": within_s},
            )
        return self.get(experiment_id)

    def extend(
        self, experiment_id: str, spec: ExperimentSpec, *, version: int, document: dict[str, Any]
    ) -> ExperimentRecord:
        """Queues an ended experiment again under the next version of its spec; its trials stay as they are.

        Args:
            spec: with more trials, or a wider space too (`extending.extended`).
            version: of the spec that it was made from.
            document: what stands for the spec from now on.

        Raises:
            NotFound: there is no such experiment.
            IllegalTransition: it has not ended, or was extended meanwhile.
        """
        self._lock(experiment_id)
        record = self.get(experiment_id)
        if not is_terminal(record.state):
            raise IllegalTransition(
                f"experiment {experiment_id} is {record.state.value}; only an ended one can be extended, so wait for "
                "its end or cancel it"
            )
        if record.spec_version != version:
            raise IllegalTransition(f"experiment {experiment_id} was extended meanwhile; read it again")
        now = self._now()
        if version == 0:
            self._add_spec_version(experiment_id, 0, record.spec, since_sequence=0, at_ms=record.created_at_ms)
        self._add_spec_version(
            experiment_id, version + 1, spec.model_dump(mode="json"), since_sequence=record.sequence, at_ms=now
        )
        # The one move out of an end state; the database allows it with the next version only (migration 0003).
        reason = "extended; waiting for the orchestrator"
        self._connection.execute(
            update(ExperimentRow)
            .where(ExperimentRow.id == experiment_id)
            .values(
                state=ExperimentState.QUEUED.value,
                reason=reason,
                since_ms=now,
                finished_at_ms=None,
                spec=spec.model_dump(mode="json"),
                document=document,
                spec_version=version + 1,
            )
        )
        self._work.events.add(
            "experiment.state",
            experiment_id=experiment_id,
            data={
                "from": record.state.value,
                "to": ExperimentState.QUEUED.value,
                "reason": reason,
                "spec_version": version + 1,
            },
        )
        return self.get(experiment_id)

    def spec_versions(self, experiment_id: str) -> dict[int, dict[str, Any]]:
        """Version -> spec, as JSON. Trials say under which one they were proposed."""
        rows = self._connection.execute(
            select(SpecVersionRow.version, SpecVersionRow.spec)
            .where(SpecVersionRow.experiment_id == experiment_id)
            .order_by(SpecVersionRow.version)
        )
        found = {row.version: row.spec for row in rows}
        return found or {0: self.get(experiment_id).spec}

    def _add_spec_version(
        self, experiment_id: str, version: int, spec: dict[str, Any], *, since_sequence: int, at_ms: int
    ) -> None:
        self._connection.execute(
            insert(SpecVersionRow).values(
                experiment_id=experiment_id, version=version, spec=spec, since_sequence=since_sequence, at_ms=at_ms
            )
        )

    def set_mlflow_experiment(self, experiment_id: str, mlflow_experiment_id: str) -> None:
        """Notes which MLflow experiment holds the trials."""
        self._connection.execute(
            update(ExperimentRow)
            .where(ExperimentRow.id == experiment_id)
            .values(mlflow_experiment_id=mlflow_experiment_id)
        )

    def conclude(
        self, experiment_id: str, current: ExperimentState, following: ExperimentState, *, reason: str
    ) -> None:
        """Ends (or pauses) an experiment that the caller holds, with its lease, and answers the wishes about it.

        Raises:
            IllegalTransition: as for `settle`.
        """
        values: dict[str, Any] = {
            "lease_owner": None,
            "lease_until_ms": None,
            "lease_boot_id": None,
            "stop_within_s": None,
        }
        if is_terminal(following):
            values["finished_at_ms"] = self._now()
            open_trials = self._work.trials.unsettled(experiment_id)
            if open_trials and following is ExperimentState.COMPLETED:
                first = open_trials[0]
                raise IllegalTransition(
                    f"experiment {experiment_id} cannot be completed: trial {first.number} is {first.state.value}"
                )
            self._cancel_open(experiment_id, reason)
        self._move(experiment_id, current, following, reason=reason, experiment_id=experiment_id, values=values)
        self._work.control.answer(experiment_id, following)

    def _cancel_open(self, experiment_id: str, reason: str) -> None:
        for run in self._work.runs.live(experiment_id):
            self._work.runs.end(run, RunState.CANCELLED, cause=Cause.USER, reason=reason)
        for trial in self._work.trials.unsettled(experiment_id):
            self._work.trials.end(trial, TrialState.CANCELLED, cause=Cause.USER, reason=reason)

    def _lock(self, experiment_id: str, epoch: int | None = None) -> Any:
        """The row's state, epoch and lease, locked until the transaction ends; Fenced if `epoch` is not the current."""
        row = self._connection.execute(_LOCK, {"id": experiment_id}).one_or_none()
        if row is None:
            raise missing("experiment", experiment_id)
        if epoch is not None and row.epoch != epoch:
            raise Fenced(f"epoch {epoch} of experiment {experiment_id} is over; the current one is {row.epoch}")
        return row

    def _records(self, *where: ColumnElement[bool], limit: int | None = None) -> tuple[ExperimentRecord, ...]:
        query = (
            select(*ExperimentRow.__table__.columns)
            .where(*where)
            .order_by(ExperimentRow.created_at_ms.desc(), ExperimentRow.id.desc())
        )
        rows = self._connection.execute(query if limit is None else query.limit(limit)).mappings().all()
        counts: dict[str, dict[TrialState, int]] = {row["id"]: {} for row in rows}
        for experiment_id, state, count in self._connection.execute(
            select(TrialRow.experiment_id, TrialRow.state, func.count())
            .where(TrialRow.experiment_id.in_(counts))
            .group_by(TrialRow.experiment_id, TrialRow.state)
        ):
            counts[experiment_id][TrialState(state)] = count
        records: list[ExperimentRecord] = []
        for row in rows:
            fields = dict(row)
            del fields["idempotency_key"], fields["idempotency_fingerprint"]
            fields |= {
                "state": ExperimentState(row["state"]),
                "warnings": tuple(row["warnings"]),
                "trial_counts": counts[row["id"]],
            }
            records.append(ExperimentRecord(**fields))
        return tuple(records)
