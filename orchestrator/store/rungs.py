"""Rungs: a trial arrives at each once, and is decided on once, on exactly the arrivals recorded before it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Select, bindparam, insert, select, update

from orchestrator.store.finite import finite_number
from orchestrator.store.models import RungRow, TrialRow
from orchestrator.store.records import Decision, RungDecision, RungRecord, TrialKind
from orchestrator.store.repository import Repository

# Built once: building a statement takes longer than running it.
_ALL = (
    select(
        *(column for column in RungRow.__table__.columns if column.name != "experiment_id"),
        TrialRow.number.label("trial_number"),
        TrialRow.kind.label("trial_kind"),
        TrialRow.batch,
    )
    .join(TrialRow, TrialRow.id == RungRow.trial_id)
    .order_by(TrialRow.experiment_id, TrialRow.number, RungRow.rung)
)
_BY_TRIAL = _ALL.where(RungRow.trial_id == bindparam("trial"))
_AT = _ALL.where(
    RungRow.experiment_id == bindparam("experiment"),
    RungRow.rung == bindparam("at"),
    TrialRow.kind == TrialKind.SEARCH.value,
)


def arrivals(*where: ColumnElement[bool]) -> Select[Any]:
    """The statement for arrivals of the trials that `where` (over `trials`) selects."""
    return _ALL.where(*where)


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
        decide: Callable[[float | None, Sequence[RungRecord]], Decision | None] | None,
    ) -> RungRecord:
        """Records a trial's arrival at a rung, decides on it, and returns both.

        If the trial arrived there before (a run that was resumed from an older checkpoint), what was recorded and
        decided then is returned and nothing is decided again. Only trials of the search are ever stopped.

        Args:
            value: the objective; what is not finite is passed on and stored as None.
            decide: `decide(value, earlier)`, called inside the transaction with the arrivals of search trials at this
                rung so far, in order of arrival; its None leaves the trial waiting, as a `decide` of None does, for
                the method of that name.
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

    def decide(self, trial_id: str, rung: int, decision: Decision, *, epoch: int) -> None:
        """Notes what was decided on a trial that waits at a rung. A rung that has its decision keeps it."""
        experiment_id = self._work.trials.get(trial_id).experiment_id
        self._work.experiments.hold(experiment_id, epoch)
        changed = self._connection.execute(
            update(RungRow)
            .where(RungRow.trial_id == trial_id, RungRow.rung == rung, RungRow.decision.is_(None))
            .values(decision=decision.decision.value, explanation=decision.explanation)
        )
        if changed.rowcount:
            self._announce(experiment_id, trial_id, rung, decision)

    def at(self, experiment_id: str, rung: int) -> tuple[RungRecord, ...]:
        """Arrivals of search trials at a rung, in order of arrival."""
        records = _as_records(self._connection.execute(_AT, {"experiment": experiment_id, "at": rung}))
        return tuple(sorted(records, key=lambda record: record.sequence))

    def of_trial(self, trial_id: str) -> tuple[RungRecord, ...]:
        """Arrivals of a trial, in ascending order of rung."""
        return _as_records(self._connection.execute(_BY_TRIAL, {"trial": trial_id}))

    def by_trial(self, statement: Select[Any], values: dict[str, Any]) -> dict[str, list[RungRecord]]:
        """What a statement of `arrivals` finds: trial id -> ascending rungs."""
        found: dict[str, list[RungRecord]] = defaultdict(list)
        for record in _as_records(self._connection.execute(statement, values)):
            found[record.trial_id].append(record)
        return found

    def _announce(self, experiment_id: str, trial_id: str, rung: int, decision: Decision) -> None:
        self._work.events.add(
            "rung.decided",
            experiment_id=experiment_id,
            trial_id=trial_id,
            data={"rung": rung, "decision": decision.decision.value, "explanation": decision.explanation},
        )


def _as_records(result: CursorResult[Any]) -> tuple[RungRecord, ...]:
    return tuple(
        RungRecord(
            **dict(row)
            | {
                "trial_kind": TrialKind(row["trial_kind"]),
                "decision": None if row["decision"] is None else RungDecision(row["decision"]),
            }
        )
        for row in result.mappings()
    )
