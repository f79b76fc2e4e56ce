"""Runs: executions of a trial, at most one of them live at a time (the database sees to it)."""

from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, bindparam, insert, select, update

from orchestrator.errors import Fenced, IllegalTransition
from orchestrator.home import run_folder
from orchestrator.states import Cause, RunState, is_terminal
from orchestrator.store.finite import finite_json
from orchestrator.store.models import RunRow, TrialRow
from orchestrator.store.records import CheckpointRecord, RunRecord, TrialRecord
from orchestrator.store.repository import Repository, missing, table_of

_LIVE = (RunState.STARTING, RunState.RUNNING)
# Built once: building a statement takes longer than running it.
_ALL = (
    select(*RunRow.__table__.columns, TrialRow.experiment_id, TrialRow.number.label("trial_number"))
    .join(TrialRow, TrialRow.id == RunRow.trial_id)
    .order_by(TrialRow.number, RunRow.number)
)
_BY_ID = _ALL.where(RunRow.id == bindparam("id"))
_INSERT = insert(table_of(RunRow))


class Runs(Repository):
    """Writes and reads runs. Methods with an `epoch` raise Fenced unless it is the current one."""

    def start(
        self,
        trial_id: str,
        *,
        epoch: int,
        resume_from: CheckpointRecord | None = None,
        stop_at_tokens: int | None = None,
    ) -> RunRecord:
        """Adds a starting run to a trial without a live one; the trial is running from now on.

        Args:
            resume_from: the committed checkpoint it continues from (`checkpoints.newest`), None to start afresh.
            stop_at_tokens: where this segment of a synchronous experiment ends.

        Raises:
            IllegalTransition: the trial has ended or has a live run.
        """
        trial = self._work.trials.held(trial_id, epoch)
        return self.add(trial, epoch=epoch, resume_from=resume_from, stop_at_tokens=stop_at_tokens)

    def add(
        self,
        trial: TrialRecord,
        *,
        epoch: int,
        resume_from: CheckpointRecord | None = None,
        stop_at_tokens: int | None = None,
    ) -> RunRecord:
        """`start` for a trial that was read, or made, while the caller holds the experiment."""
        trial_id = trial.id
        before = () if trial.started_at_ms is None else self.of_trial(trial_id)
        live = [run for run in before if run.state in _LIVE]
        if live or is_terminal(trial.state):
            why = f"its run {live[0].id} is {live[0].state.value}" if live else f"it is {trial.state.value}"
            raise IllegalTransition(f"trial {trial_id} cannot start a run: {why}")
        self._work.trials.begin(trial, epoch)
        run_id = self._work.ids.new("run")
        now = self._now()
        run = RunRecord(
            id=run_id,
            trial_id=trial_id,
            experiment_id=trial.experiment_id,
            trial_number=trial.number,
            number=len(before),
            state=RunState.STARTING,
            cause=None,
            reason="starting its worker",
            since_ms=now,
            epoch=epoch,
            folder=run_folder(trial.experiment_id, trial.number, run_id).as_posix(),
            resumed_from_step=None if resume_from is None else resume_from.step,
            stop_at_tokens=stop_at_tokens,
            progress=None,
            environment=None,
            created_at_ms=now,
            started_at_ms=None,
            finished_at_ms=None,
        )
        columns = vars(run) | {"state": run.state.value}
        del columns["experiment_id"], columns["trial_number"]
        self._connection.execute(_INSERT, columns)
        self._work.events.add(
            "run.state",
            experiment_id=trial.experiment_id,
            trial_id=trial_id,
            run_id=run_id,
            data={
                "from": None,
                "to": RunState.STARTING.value,
                "number": len(before),
                "resumed_from_step": None if resume_from is None else resume_from.step,
            },
        )
        return run

    def running(self, run_id: str, *, epoch: int, environment: dict[str, Any] | None = None) -> RunRecord:
        """Notes that the run's worker trains. Saying it again changes nothing but the environment."""
        run = self.hold_live(run_id, epoch)
        if run.state is RunState.STARTING:
            return self.begin(run, environment=environment)
        if environment is not None:
            environment = finite_json(environment)
            self._connection.execute(update(RunRow).where(RunRow.id == run_id).values(environment=environment))
            return replace(run, environment=environment)
        return run

    def begin(
        self, run: RunRecord, *, environment: dict[str, Any] | None = None, at_ms: int | None = None
    ) -> RunRecord:
        """Makes a starting run running. The caller holds the experiment.

        Args:
            at_ms: when its worker said so; now by default.
        """
        values: dict[str, Any] = {"started_at_ms": self._now() if at_ms is None else at_ms}
        if environment is not None:
            values["environment"] = finite_json(environment)
        since_ms = self._move(
            run.id,
            run.state,
            RunState.RUNNING,
            reason="",
            experiment_id=run.experiment_id,
            trial_id=run.trial_id,
            values=values,
        )
        return replace(run, state=RunState.RUNNING, reason="", since_ms=since_ms, **values)

    def progress(self, run_id: str, *, epoch: int, progress: dict[str, Any]) -> None:
        """Replaces the run's last progress. Writes no event."""
        self.hold_live(run_id, epoch)
        self._connection.execute(update(RunRow).where(RunRow.id == run_id).values(progress=finite_json(progress)))

    def settle(
        self,
        run_id: str,
        *,
        epoch: int,
        state: RunState,
        cause: Cause | None = None,
        reason: str = "",
        progress: dict[str, Any] | None = None,
    ) -> RunRecord:
        """Ends a run. Settling it again the same way changes nothing.

        Raises:
            IllegalTransition: it ended otherwise before.
        """
        run = self._held(run_id, epoch)
        if run.state is state and is_terminal(state):
            return run
        return self.end(run, state, cause=cause, reason=reason, progress=progress)

    def get(self, run_id: str) -> RunRecord:
        """The run; raises NotFound."""
        records = _as_records(self._connection.execute(_BY_ID, {"id": run_id}))
        if not records:
            raise missing("run", run_id)
        return records[0]

    def of_trial(self, trial_id: str) -> tuple[RunRecord, ...]:
        """The trial's runs, first to last."""
        return self._records(RunRow.trial_id == trial_id)

    def of_experiment(self, experiment_id: str) -> tuple[RunRecord, ...]:
        """Every run of the experiment, by number of trial and of run."""
        return self._records(TrialRow.experiment_id == experiment_id)

    def live(self, experiment_id: str) -> tuple[RunRecord, ...]:
        """The runs that have not ended, by number of trial."""
        return self._records(
            TrialRow.experiment_id == experiment_id, RunRow.state.in_([state.value for state in _LIVE])
        )

    def hold_live(self, run_id: str, epoch: int) -> RunRecord:
        """The run, with its experiment locked; every report of a run starts with this.

        Raises:
            Fenced: the epoch is over, or the run is: it was lost or cancelled meanwhile, and its worker must stop.
        """
        run = self._held(run_id, epoch)
        if run.state not in _LIVE or run.epoch != epoch:
            raise Fenced(f"run {run_id} of epoch {run.epoch} is {run.state.value}; it may not report any more")
        return run

    def end(
        self,
        run: RunRecord,
        state: RunState,
        *,
        cause: Cause | None,
        reason: str,
        progress: dict[str, Any] | None = None,
    ) -> RunRecord:
        """Makes a run terminal. The caller holds the experiment.

        Args:
            progress: its last, if there is a newer one than the row's.
        """
        values: dict[str, Any] = {"finished_at_ms": self._now()}
        if progress is not None:
            values["progress"] = finite_json(progress)
        since_ms = self._move(
            run.id,
            run.state,
            state,
            reason=reason,
            experiment_id=run.experiment_id,
            trial_id=run.trial_id,
            values=values | {"cause": None if cause is None else cause.value},
            note={"cause": cause},
        )
        return replace(run, state=state, cause=cause, reason=reason, since_ms=since_ms, **values)

    def _held(self, run_id: str, epoch: int) -> RunRecord:
        """The run, read while its experiment is held."""
        run = self.get(run_id)
        if self._work.experiments.is_held(run.experiment_id, epoch):
            return run
        self._work.experiments.hold(run.experiment_id, epoch)
        return self.get(run_id)

    def _records(self, *where: ColumnElement[bool]) -> tuple[RunRecord, ...]:
        return _as_records(self._connection.execute(_ALL.where(*where)))


def _as_records(result: CursorResult[Any]) -> tuple[RunRecord, ...]:
    return tuple(
        RunRecord(
            **dict(row)
            | {
                "state": RunState(row["state"]),
                "cause": None if row["cause"] is None else Cause(row["cause"]),
            }
        )
        for row in result.mappings()
    )
