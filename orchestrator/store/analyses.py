"""Analyses: what was worked out of experiments' trials, and who waits for more. A cache: all can be made again."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select, update

from orchestrator.store.finite import finite_json
from orchestrator.store.models import AnalysisRow
from orchestrator.store.repository import Repository


@dataclass(frozen=True, kw_only=True)
class AnalysisRecord:
    """A row of `analyses`."""

    experiment_id: str
    wanted_ms: int | None
    sequence: int | None
    document: dict[str, Any] | None
    problem: str | None
    at_ms: int | None


class Analyses(Repository):
    """Writes and reads analyses."""

    def of_experiment(self, experiment_id: str) -> AnalysisRecord | None:
        """The newest analysis of an experiment; None if nobody ever asked for one."""
        row = self._connection.execute(
            select(*AnalysisRow.__table__.columns).where(AnalysisRow.experiment_id == experiment_id)
        ).one_or_none()
        return None if row is None else AnalysisRecord(**row._mapping)

    def want(self, experiment_id: str) -> None:
        """Notes that somebody waits for an analysis of the experiment as it is now; doing so again changes nothing."""
        self._work.experiments.lock(experiment_id)
        there = self.of_experiment(experiment_id)
        if there is None:
            self._connection.execute(insert(AnalysisRow).values(experiment_id=experiment_id, wanted_ms=self._now()))
        elif there.wanted_ms is None:
            self._update(experiment_id, wanted_ms=self._now())

    def next_wanted(self) -> str | None:
        """The experiment whose analysis was asked for first; None if nobody waits."""
        query = (
            select(AnalysisRow.experiment_id)
            .where(AnalysisRow.wanted_ms.is_not(None))
            .order_by(AnalysisRow.wanted_ms, AnalysisRow.experiment_id)
            .limit(1)
        )
        return self._connection.execute(query).scalar_one_or_none()

    def write(self, experiment_id: str, *, sequence: int, document: dict[str, Any]) -> None:
        """Keeps an analysis; nobody waits any more.

        Args:
            sequence: `experiments.sequence` when the trials were read.
        """
        self._update(
            experiment_id,
            wanted_ms=None,
            sequence=sequence,
            document=finite_json(document),
            problem=None,
            at_ms=self._now(),
        )

    def give_up(self, experiment_id: str, *, problem: str) -> None:
        """Notes why there is no analysis; nobody waits any more, and what there was stays."""
        self._update(experiment_id, wanted_ms=None, problem=problem[:1000], at_ms=self._now())

    def _update(self, experiment_id: str, **values: Any) -> None:
        self._connection.execute(update(AnalysisRow).where(AnalysisRow.experiment_id == experiment_id).values(**values))
