"""Runs: executions of a trial, at most one of them live at a time (the database sees to it)."""

from typing import Any

from sqlalchemy import ColumnElement, insert, select, update

from orchestrator.errors import Fenced, IllegalTransition
from orchestrator.home import run_folder
from orchestrator.states import Cause, RunState, is_terminal
from orchestrator.store.finite import finite_json
from orchestrator.store.models import RunRow, TrialRow
from orchestrator.store.records import CheckpointRecord, RunRecord
from orchestrator.store.repository import Repository, missing

_LIVE = (RunState.STARTING, RunState.RUNNING)


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
        trial = self._work.trials.get(trial_id)
        self._work.experiments.hold(trial.experiment_id, epoch)
        trial = self._work.trials.get(trial_id)
        before = self.of_trial(trial_id)
        live = [run for run in before if run.state in _LIVE]
        if live or is_terminal(trial.state):
            why = f"its run {live[0].id} is {live[0].state.value}" if live else f"it is {trial.state.value}"
            raise IllegalTransition(f"trial {trial_id} cannot start a run: {why}")
        self._work.trials.begin(trial, epoch)
        run_id = self._work.ids.new("run")
        now = self._now()
        self._connection.execute(
            insert(RunRow).values(
                id=run_id,
                trial_id=trial_id,
                number=len(before),
                state=RunState.STARTING.value,
                reason="starting its worker",
                since_ms=now,
                epoch=epoch,
                folder=run_folder(trial.experiment_id, trial.number, run_id).as_posix(),
                resumed_from_step=None if resume_from is None else resume_from.step,
                stop_at_tokens=stop_at_tokens,
                created_at_ms=now,
            )
        )
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
        return self.get(run_id)

    def running(self, run_id: str, *, epoch: int, environment: dict[str, Any] | None = None) -> RunRecord:
        """Notes that the run's worker trains. Saying it again changes nothing but the environment."""
        run = self.hold_live(run_id, epoch)
        if run.state is RunState.STARTING:
            self._move(
                run_id,
                run.state,
                RunState.RUNNING,
                reason="",
                experiment_id=run.experiment_id,
                trial_id=run.trial_id,
                values={"started_at_ms": self._now()},
            )
        if environment is not None:
            self._connection.execute(
                update(RunRow).where(RunRow.id == run_id).values(environment=finite_json(environment))
            )
        return self.get(run_id)

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
        run = self.get(run_id)
        self._work.experiments.hold(run.experiment_id, epoch)
        run = self.get(run_id)
        if run.state is state and is_terminal(state):
            return run
        if progress is not None:
            self._connection.execute(update(RunRow).where(RunRow.id == run_id).values(progress=finite_json(progress)))
        self.end(run, state, cause=cause, reason=reason)
        return self.get(run_id)

    def get(self, run_id: str) -> RunRecord:
        """The run; raises NotFound."""
        records = self._records(RunRow.id == run_id)
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
        run = self.get(run_id)
        self._work.experiments.hold(run.experiment_id, epoch)
        run = self.get(run_id)
        if run.state not in _LIVE or run.epoch != epoch:
            raise Fenced(f"run {run_id} of epoch {run.epoch} is {run.state.value}; it may not report any more")
        return run

    def end(self, run: RunRecord, state: RunState, *, cause: Cause | None, reason: str) -> None:
        """Makes a run terminal. The caller holds the experiment."""
        self._move(
            run.id,
            run.state,
            state,
            reason=reason,
            experiment_id=run.experiment_id,
            trial_id=run.trial_id,
            values={"cause": None if cause is None else cause.value, "finished_at_ms": self._now()},
            note={"cause": cause},
        )

    def _records(self, *where: ColumnElement[bool]) -> tuple[RunRecord, ...]:
        rows = self._connection.execute(
            select(*RunRow.__table__.columns, TrialRow.experiment_id, TrialRow.number.label("trial_number"))
            .join(TrialRow, TrialRow.id == RunRow.trial_id)
            .where(*where)
            .order_by(TrialRow.number, RunRow.number)
        ).mappings()
        return tuple(
            RunRecord(
                **dict(row)
                | {
                    "state": RunState(row["state"]),
                    "cause": None if row["cause"] is None else Cause(row["cause"]),
                }
            )
            for row in rows
        )
