"""Trials: proposed once each, settled once each, and the history that proposals are made from."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, RowMapping, Select, bindparam, exists, func, insert, or_, select, update

from orchestrator.errors import IllegalTransition
from orchestrator.states import Cause, RunState, TrialState, is_terminal
from orchestrator.store.finite import finite_json, finite_number
from orchestrator.store.models import ExperimentRow, RunRow, TrialRow
from orchestrator.store.paging import check_limit, decode_cursor, encode_cursor, page
from orchestrator.store.records import Page, Proposal, RungDecision, RungRecord, RunRecord, TrialKind, TrialRecord
from orchestrator.store.repository import LIVE, Repository, missing, table_of
from orchestrator.store.rungs import arrivals

_OPEN = (TrialState.QUEUED, TrialState.RUNNING, TrialState.RETRYING)
# Built once: building a statement takes longer than running it.
_ALL = select(*TrialRow.__table__.columns).order_by(TrialRow.experiment_id, TrialRow.number)
_BY_ID = _ALL.where(TrialRow.id == bindparam("id"))


class _Selected(NamedTuple):
    """Statements for some trials and for their rungs."""

    trials: Select[Any]
    rungs: Select[Any]


def _selected(*where: ColumnElement[bool]) -> _Selected:
    return _Selected(_ALL.where(*where), arrivals(*where))


_WAITING = _selected(
    TrialRow.experiment_id == bindparam("experiment"),
    TrialRow.state.in_([state.value for state in _OPEN]),
    ~exists().where(RunRow.trial_id == TrialRow.id, LIVE),
)
_CHANGED = _selected(
    TrialRow.experiment_id == bindparam("experiment"),
    or_(TrialRow.finished_sequence.is_(None), TrialRow.finished_sequence > bindparam("sequence")),
)
_NEXT_NUMBER = select(func.coalesce(func.max(TrialRow.number) + 1, 0)).where(
    TrialRow.experiment_id == bindparam("experiment")
)
_LIVE_RUN = select(RunRow.id, RunRow.state).where(RunRow.trial_id == bindparam("trial"), LIVE).limit(1)
_INSERT = (
    insert(table_of(TrialRow))
    .values(
        spec_version=select(ExperimentRow.spec_version)
        .where(ExperimentRow.id == bindparam("experiment"))
        .scalar_subquery()
    )
    .returning(TrialRow.spec_version)
)


@dataclass
class Remembered:
    """The ended trials of one experiment that were read before: nothing that proposals depend on changes in them.

    Attributes:
        sequence: of the newest end among them.
        trials: by number.
        batch_size: trials of a batch under the present spec; 0 without batches, None until it is asked for.
    """

    sequence: int = 0
    trials: dict[int, TrialRecord] = field(default_factory=dict)
    batch_size: int | None = None


class Trials(Repository):
    """Writes and reads trials. Methods with an `epoch` raise Fenced unless it is the current one."""

    def propose(
        self,
        experiment_id: str,
        *,
        epoch: int,
        choose: Callable[[int, Sequence[TrialRecord]], Proposal | None],
        remembered: Remembered | None = None,
    ) -> TrialRecord | None:
        """Asks `choose` for the next trial and records it.

        `choose(number, history)` is called inside the transaction, so that the history it sees is exactly what is
        recorded before the new trial. A proposal without a config is recorded as infeasible, which it then is for good.

        Args:
            choose: gets the new trial's number and all trials before it (baselines too) in order of number; returns
                None when there is nothing more to propose.
            remembered: what the caller's earlier proposals have read of this experiment; only the rest is read.
        """
        remembered = Remembered() if remembered is None else remembered
        self._work.experiments.hold(experiment_id, epoch)
        history = self._recalled(experiment_id, remembered)
        number = self.next_number(experiment_id)
        proposal = choose(number, history)
        if proposal is None:
            return None
        trial = self._add(
            experiment_id,
            number=number,
            kind=TrialKind.SEARCH,
            label=None,
            batch=self._batch(experiment_id, history, remembered),
            epoch=epoch,
            sequence=self._work.experiments.next_sequence(experiment_id),
            proposal=proposal,
        )
        if proposal.config is None:
            return self.end(trial, TrialState.INFEASIBLE, cause=Cause.INVALID_CONFIG, reason=proposal.problem or "")
        return trial

    def next_number(self, experiment_id: str) -> int:
        """The number of the experiment's next trial. The caller holds the experiment."""
        return self._connection.execute(_NEXT_NUMBER, {"experiment": experiment_id}).scalar_one()

    def history(self, experiment_id: str) -> tuple[TrialRecord, ...]:
        """Every trial of the experiment with its rungs, in order of number."""
        return self._records(TrialRow.experiment_id == experiment_id)

    def _recalled(self, experiment_id: str, remembered: Remembered) -> list[TrialRecord]:
        """The history, of which only what is not remembered is read. The caller holds the experiment.

        Ends are numbered while the experiment is held, so none before the newest one read can still appear.
        """
        found = self._found(_CHANGED, {"experiment": experiment_id, "sequence": remembered.sequence})
        for trial in found:
            if trial.finished_sequence is not None:
                remembered.trials[trial.number] = trial
                remembered.sequence = max(remembered.sequence, trial.finished_sequence)
        everything = {**remembered.trials, **{trial.number: trial for trial in found}}
        return [everything[number] for number in sorted(everything)]

    def get(self, trial_id: str) -> TrialRecord:
        """The trial with its rungs; raises NotFound."""
        row = self._connection.execute(_BY_ID, {"id": trial_id}).mappings().one_or_none()
        if row is None:
            raise missing("trial", trial_id)
        # What has never run has arrived nowhere.
        return _record(row, () if row["started_at_ms"] is None else self._work.rungs.of_trial(trial_id))

    def list(self, experiment_id: str, *, limit: int = 100, cursor: str | None = None) -> Page[TrialRecord]:
        """A page of an experiment's trials, in order of number. Raises InvalidCursor."""
        check_limit(limit)
        after = -1 if cursor is None else decode_cursor(cursor)[0]
        records = self._records(TrialRow.experiment_id == experiment_id, TrialRow.number > after, limit=limit + 1)
        return page(records, limit, [encode_cursor(record.number) for record in records])

    def unsettled(self, experiment_id: str) -> tuple[TrialRecord, ...]:
        """The trials that have not ended, in order of number."""
        return self._records(
            TrialRow.experiment_id == experiment_id, TrialRow.state.in_([state.value for state in _OPEN])
        )

    def retry_of(self, trial_id: str) -> TrialRecord | None:
        """The trial that tries a failed one again, None if nobody has asked for one."""
        records = self._records(TrialRow.retry_of == trial_id)
        return records[0] if records else None

    def retries(self, trial_ids: Collection[str]) -> dict[str, str]:
        """Failed trial -> the trial that tries it again, for those of `trial_ids` that have one."""
        rows = self._connection.execute(select(TrialRow.retry_of, TrialRow.id).where(TrialRow.retry_of.in_(trial_ids)))
        return {str(failed): id for failed, id in rows}

    def waiting(self, experiment_id: str) -> tuple[TrialRecord, ...]:
        """The trials that have not ended and have no live run: what a driver has to start, in order of number."""
        return self._found(_WAITING, {"experiment": experiment_id})

    def settle(
        self,
        trial_id: str,
        *,
        epoch: int,
        state: TrialState,
        cause: Cause | None = None,
        reason: str = "",
        objective: float | None = None,
        objective_tokens: int | None = None,
        summary: dict[str, Any] | None = None,
        further_values: Sequence[float | None] | None = None,
    ) -> TrialRecord:
        """Ends a trial whose runs have ended. Settling it again the same way changes nothing.

        Args:
            objective: the objective's value; what is not finite is stored as absent.
            further_values: of the spec's further objectives, likewise; None if there are none.

        Raises:
            IllegalTransition: the trial ended otherwise before, or one of its runs is still live.
        """
        return self.settle_held(
            self.held(trial_id, epoch),
            epoch=epoch,
            state=state,
            cause=cause,
            reason=reason,
            objective=objective,
            objective_tokens=objective_tokens,
            summary=summary,
            further_values=further_values,
        )

    def settle_held(
        self,
        trial: TrialRecord,
        *,
        epoch: int,
        state: TrialState,
        cause: Cause | None = None,
        reason: str = "",
        objective: float | None = None,
        objective_tokens: int | None = None,
        summary: dict[str, Any] | None = None,
        further_values: Sequence[float | None] | None = None,
    ) -> TrialRecord:
        """`settle` for a trial that was read while the caller holds the experiment."""
        if trial.state is state and is_terminal(state):
            return trial
        live = self._connection.execute(_LIVE_RUN, {"trial": trial.id}).first()
        if live is not None:
            raise IllegalTransition(f"trial {trial.id} cannot end: its run {live.id} is {live.state}")
        return self.end(
            trial,
            state,
            cause=cause,
            reason=reason,
            values={
                "epoch": epoch,
                "objective": finite_number(objective),
                "objective_tokens": objective_tokens if finite_number(objective) is not None else None,
                "summary": finite_json(summary),
                "further_values": None if further_values is None else [finite_number(one) for one in further_values],
            },
        )

    def held(self, trial_id: str, epoch: int) -> TrialRecord:
        """The trial, read while its experiment is held: as it stays until this transaction changes it."""
        trial = self.get(trial_id)
        if self._work.experiments.is_held(trial.experiment_id, epoch):
            return trial
        self._work.experiments.hold(trial.experiment_id, epoch)
        return self.get(trial_id)

    def set_veto(self, trial_id: str, veto: str | None) -> None:
        """Notes why a completed trial cannot win, or that nothing is against it. The caller holds the experiment."""
        self._connection.execute(update(TrialRow).where(TrialRow.id == trial_id).values(veto=veto))

    def lose_runs(
        self,
        experiment_id: str,
        *,
        epoch: int,
        reason: str,
        run_ids: Collection[str] | None = None,
        counts: bool = True,
    ) -> tuple[RunRecord, ...]:
        """Marks live runs as lost and says what becomes of their trials.

        A trial goes on to be retried; it fails once its retries are used up; and it is pruned if a rung had already
        decided so.

        Args:
            run_ids: which of the experiment's live runs; None for all of them.
            counts: whether this uses up a retry. False where the driver was lost and the trials only went with it.

        Returns:
            The runs that were lost by this call.
        """
        self._work.experiments.hold(experiment_id, epoch)
        max_retries: int = self._spec(experiment_id)["max_retries"]
        lost = [run for run in self._work.runs.live(experiment_id) if run_ids is None or run.id in run_ids]
        for run in lost:
            self._work.runs.end(run, RunState.LOST, cause=Cause.PROCESS_LOST, reason=reason)
            trial = self.get(run.trial_id)
            stopped = [rung for rung in trial.rungs if rung.decision is RungDecision.STOP]
            num_retries = trial.num_retries + int(counts)
            if stopped:
                self.end(
                    trial,
                    TrialState.PRUNED,
                    cause=Cause(self._spec(experiment_id)["scheduler"]["kind"]),
                    reason=stopped[-1].explanation or "",
                    values={"epoch": epoch, "objective": stopped[-1].value, "objective_tokens": stopped[-1].tokens},
                )
            elif num_retries > max_retries:
                self.end(
                    trial,
                    TrialState.FAILED,
                    cause=Cause.RETRIES_EXHAUSTED,
                    reason=f"lost {num_retries} times, max_retries={max_retries}; the last time: {reason}",
                    values={"epoch": epoch},
                )
            else:
                self._move(
                    trial.id,
                    trial.state,
                    TrialState.RETRYING,
                    reason=reason,
                    experiment_id=experiment_id,
                    values={"epoch": epoch, "num_retries": num_retries, "cause": Cause.PROCESS_LOST.value},
                )
        return tuple(self._work.runs.get(run.id) for run in lost)

    def insert(
        self,
        experiment_id: str,
        *,
        number: int,
        kind: TrialKind,
        label: str | None,
        batch: int | None,
        epoch: int,
        sequence: int,
        proposal: Proposal,
    ) -> str:
        """Adds a queued trial within a transaction that holds the experiment (or created it); returns its id."""
        trial = self._add(
            experiment_id,
            number=number,
            kind=kind,
            label=label,
            batch=batch,
            epoch=epoch,
            sequence=sequence,
            proposal=proposal,
        )
        return trial.id

    def _add(
        self,
        experiment_id: str,
        *,
        number: int,
        kind: TrialKind,
        label: str | None,
        batch: int | None,
        epoch: int,
        sequence: int,
        proposal: Proposal,
    ) -> TrialRecord:
        trial_id = self._work.ids.new("trl")
        now = self._now()
        config = proposal.config
        columns: dict[str, Any] = {
            "id": trial_id,
            "experiment_id": experiment_id,
            "number": number,
            "label": label,
            "batch": batch,
            "point": proposal.point,
            "replica": proposal.replica,
            "parent_trial_id": None if proposal.parent is None else proposal.parent.trial_id,
            "parent_checkpoint_id": None if proposal.parent is None else proposal.parent.id,
            "reason": "waiting for a free place in the cluster",
            "since_ms": now,
            "epoch": epoch,
            "params": proposal.params,
            "config": None if config is None else config.model_dump(mode="json"),
            "config_fingerprint": None if config is None else config.fingerprint(),
            "asked_sequence": sequence,
            "created_at_ms": now,
        }
        spec_version = self._connection.execute(
            _INSERT, columns | {"kind": kind.value, "state": TrialState.QUEUED.value, "experiment": experiment_id}
        ).scalar_one()
        self._work.events.add(
            "trial.proposed",
            experiment_id=experiment_id,
            trial_id=trial_id,
            data={"number": number, "kind": kind.value, "label": label, "params": proposal.params}
            | ({} if proposal.point is None else {"point": proposal.point, "replica": proposal.replica})
            | ({} if proposal.parent is None else {"parent": proposal.parent.trial_id, "step": proposal.parent.step}),
        )
        return TrialRecord(
            **columns,
            kind=kind,
            state=TrialState.QUEUED,
            spec_version=spec_version,
            cause=None,
            finished_sequence=None,
            objective=None,
            objective_tokens=None,
            summary=None,
            num_retries=0,
            started_at_ms=None,
            finished_at_ms=None,
        )

    def begin(self, trial: TrialRecord, epoch: int) -> None:
        """Makes a trial running, as its run starts. The caller holds the experiment."""
        values: dict[str, Any] = {"epoch": epoch, "cause": None}
        if trial.started_at_ms is None:
            values["started_at_ms"] = self._now()
        if trial.state is not TrialState.RUNNING:
            self._move(
                trial.id, trial.state, TrialState.RUNNING, reason="", experiment_id=trial.experiment_id, values=values
            )
        else:
            self._connection.execute(update(TrialRow).where(TrialRow.id == trial.id).values(reason="", **values))

    def explain(self, trial_id: str, reason: str) -> None:
        """Says why a trial that has not ended is not running. The caller holds the experiment."""
        self._connection.execute(update(TrialRow).where(TrialRow.id == trial_id).values(reason=reason))

    def set_aside(self, trial: TrialRecord, *, reason: str) -> None:
        """Lets a trial wait whose run has ended in good order before its time: it goes on later, at no cost.

        The caller holds the experiment.
        """
        self._move(trial.id, trial.state, TrialState.RETRYING, reason=reason, experiment_id=trial.experiment_id)

    def end(
        self,
        trial: TrialRecord,
        state: TrialState,
        *,
        cause: Cause | None,
        reason: str,
        values: dict[str, Any] | None = None,
    ) -> TrialRecord:
        """Makes a trial terminal, and returns it as it is then. The caller holds the experiment."""
        changed = {
            "finished_at_ms": self._now(),
            "finished_sequence": self._work.experiments.next_sequence(trial.experiment_id),
        } | (values or {})
        since_ms = self._move(
            trial.id,
            trial.state,
            state,
            reason=reason,
            experiment_id=trial.experiment_id,
            values=changed | {"cause": None if cause is None else cause.value},
            note={"number": trial.number, "cause": cause},
        )
        return replace(trial, state=state, cause=cause, reason=reason, since_ms=since_ms, **changed)

    def _batch(self, experiment_id: str, history: Sequence[TrialRecord], remembered: Remembered) -> int | None:
        if remembered.batch_size is None:
            spec = self._spec(experiment_id)
            remembered.batch_size = spec["batch_size"] * spec.get("replicas", 1) if spec["synchronous"] else 0
        if not remembered.batch_size:
            return None
        return sum(trial.kind is TrialKind.SEARCH for trial in history) // remembered.batch_size

    def _spec(self, experiment_id: str) -> dict[str, Any]:
        return self._connection.execute(
            select(ExperimentRow.spec).where(ExperimentRow.id == experiment_id)
        ).scalar_one()

    def _records(self, *where: ColumnElement[bool], limit: int | None = None) -> tuple[TrialRecord, ...]:
        if limit is None:
            return self._found(_selected(*where), {})
        rows = self._connection.execute(_ALL.where(*where).limit(limit)).mappings().all()
        # A page names its trials; a whole history may have more of them than a statement takes parameters.
        rungs = self._work.rungs.by_trial(arrivals(TrialRow.id.in_([row["id"] for row in rows])), {})
        return tuple(_record(row, tuple(rungs.get(row["id"], ()))) for row in rows)

    def _found(self, selected: _Selected, values: dict[str, Any]) -> tuple[TrialRecord, ...]:
        rows = self._connection.execute(selected.trials, values).mappings().all()
        if all(row["started_at_ms"] is None for row in rows):
            return tuple(_record(row, ()) for row in rows)
        rungs = self._work.rungs.by_trial(selected.rungs, values)
        return tuple(_record(row, tuple(rungs.get(row["id"], ()))) for row in rows)


def _record(row: RowMapping, rungs: tuple[RungRecord, ...]) -> TrialRecord:
    return TrialRecord(
        **dict(row)
        | {
            "kind": TrialKind(row["kind"]),
            "state": TrialState(row["state"]),
            "cause": None if row["cause"] is None else Cause(row["cause"]),
            "rungs": rungs,
        }
    )
