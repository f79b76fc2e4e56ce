"""Rungs: a trial arrives at each once, and is decided on once, on exactly the arrivals recorded before it."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import ColumnElement, insert, select, update

from orchestrator.states import Cause, TrialState
from orchestrator.store.finite import finite_number
from orchestrator.store.models import RungRow, TrialRow
from orchestrator.store.records import Decision, RungDecision, RungRecord, TrialKind, TrialRecord
from orchestrator.store.repository import Repository

_UNDECIDED_ENDS = (TrialState.FAILED, TrialState.INFEASIBLE)


class Rungs(Repository):
    """Writes and reads rungs. Methods with an `epoch` raise Fenced unless it is the current one."""

    def record(
        self,
        run_id: str,
        *,
        epoch: int,
        rung: int,
        tokens: int,
        value: float | None,
        decide: Callable[[float | None, Sequence[RungRecord]], Decision] | None,
    ) -> RungRecord:
        """Records a trial's arrival at a rung, decides on it, and returns both.

        If the trial arrived there before (a run that was resumed from an older checkpoint), what was recorded and
        decided then is returned and nothing is decided again. Only trials of the search are ever stopped.

        Args:
            value: the objective; what is not finite is passed on and stored as None.
            decide: `decide(value, earlier)`, called inside the transaction with the arrivals of search trials at this
                rung so far, in order of arrival. None leaves the decision to `decide_batch`.
        """
        run = self._work.runs.hold_live(run_id, epoch)
        trial = self._work.trials.get(run.trial_id)
        for there in trial.rungs:
            if there.rung == rung:
                return there
        value = finite_number(value)
        if trial.kind is not TrialKind.SEARCH:
            what = "a baseline" if trial.kind is TrialKind.BASELINE else "added by hand"
            decision: Decision | None = Decision(
                decision=RungDecision.CONTINUE, explanation=f"{what}, which is never stopped early"
            )
        elif decide is None:
            decision = None
        else:
            decision = decide(value, self.at(run.experiment_id, rung))
        self._connection.execute(
            insert(RungRow).values(
                trial_id=trial.id,
                rung=rung,
                experiment_id=run.experiment_id,
                run_id=run_id,
                tokens=tokens,
                value=value,
                sequence=self._work.experiments.next_sequence(run.experiment_id),
                decision=None if decision is None else decision.decision.value,
                explanation=None if decision is None else decision.explanation,
                at_ms=self._now(),
            )
        )
        self._work.events.add(
            "rung.arrived",
            experiment_id=run.experiment_id,
            trial_id=trial.id,
            run_id=run_id,
            data={"rung": rung, "tokens": tokens, "value": value},
        )
        if decision is not None:
            self._announce(run.experiment_id, trial.id, rung, decision)
        return next(record for record in self._work.trials.get(trial.id).rungs if record.rung == rung)

    def decide_batch(
        self,
        experiment_id: str,
        *,
        epoch: int,
        batch: int,
        rung: int,
        decide: Callable[[Sequence[RungRecord], int], Mapping[str, Decision]],
    ) -> tuple[RungRecord, ...] | None:
        """Decides on a whole batch of a synchronous experiment at one rung, once all of it has arrived.

        Args:
            decide: `decide(arrived, num_failed)` -> trial id -> decision. `arrived` is in order of trial number;
                `num_failed` counts trials that failed on the way to this rung.

        Returns:
            The batch's arrivals with their decisions (the stored ones, if it was decided before), by trial number; None
            while a trial that is still running has not arrived.
        """
        self._work.experiments.hold(experiment_id, epoch)
        trials = [trial for trial in self._work.trials.history(experiment_id) if trial.batch == batch]
        arrived = [record for trial in trials for record in trial.rungs if record.rung == rung]
        if any(record.decision is not None for record in arrived):
            return tuple(arrived)
        there = {record.trial_id for record in arrived}
        if any(trial.finished_at_ms is None and trial.id not in there for trial in trials):
            return None
        num_failed = sum(_failed_before(trial, rung) for trial in trials)
        decisions = decide(arrived, num_failed) if arrived else {}
        for record in arrived:
            decision = decisions[record.trial_id]
            self._connection.execute(
                update(RungRow)
                .where(RungRow.trial_id == record.trial_id, RungRow.rung == rung, RungRow.decision.is_(None))
                .values(decision=decision.decision.value, explanation=decision.explanation)
            )
            self._announce(experiment_id, record.trial_id, rung, decision)
        return tuple(record for record in self._records(RungRow.rung == rung) if record.trial_id in there)

    def at(self, experiment_id: str, rung: int) -> tuple[RungRecord, ...]:
        """Arrivals of search trials at a rung, in order of arrival."""
        records = self._records(
            RungRow.experiment_id == experiment_id, RungRow.rung == rung, TrialRow.kind == TrialKind.SEARCH.value
        )
        return tuple(sorted(records, key=lambda record: record.sequence))

    def of_trials(self, *where: ColumnElement[bool]) -> dict[str, list[RungRecord]]:
        """Arrivals of the trials that `where` (over `trials`) selects: trial id -> ascending rungs."""
        found: dict[str, list[RungRecord]] = defaultdict(list)
        for record in self._records(*where):
            found[record.trial_id].append(record)
        return found

    def _announce(self, experiment_id: str, trial_id: str, rung: int, decision: Decision) -> None:
        self._work.events.add(
            "rung.decided",
            experiment_id=experiment_id,
            trial_id=trial_id,
            data={"rung": rung, "decision": decision.decision.value, "explanation": decision.explanation},
        )

    def _records(self, *where: ColumnElement[bool]) -> tuple[RungRecord, ...]:
        rows = self._connection.execute(
            select(
                *(column for column in RungRow.__table__.columns if column.name != "experiment_id"),
                TrialRow.number.label("trial_number"),
                TrialRow.kind.label("trial_kind"),
                TrialRow.batch,
            )
            .join(TrialRow, TrialRow.id == RungRow.trial_id)
            .where(*where)
            .order_by(TrialRow.experiment_id, TrialRow.number, RungRow.rung)
        ).mappings()
        return tuple(
            RungRecord(
                **dict(row)
                | {
                    "trial_kind": TrialKind(row["trial_kind"]),
                    "decision": None if row["decision"] is None else RungDecision(row["decision"]),
                }
            )
            for row in rows
        )


def _failed_before(trial: TrialRecord, rung: int) -> bool:
    """True if the trial failed by itself after it was let through the rung before `rung`, and did not reach `rung`."""
    ended = trial.state in _UNDECIDED_ENDS or trial.cause is Cause.STOP_RULE
    return ended and trial.cause is not Cause.RETRIES_EXHAUSTED and len(trial.rungs) == rung
