"""Warm starts: what of other experiments a search learns from, found and copied when it is submitted."""

from dataclasses import asdict

from sqlalchemy import insert, select

from orchestrator.errors import NotFound, SpecProblem, SpecRejected
from orchestrator.search.points import as_trials
from orchestrator.search.warm_start import Skipped, Source, WarmStart, WarmTrial, warm_start
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, TrialState
from orchestrator.store.models import WarmStartRow
from orchestrator.store.repository import Repository


class WarmStarts(Repository):
    """Finds, writes and reads warm starts."""

    def found(self, spec: ExperimentSpec) -> WarmStart | None:
        """What a search of `spec` would start with now; None if it names no experiments.

        Raises:
            SpecRejected: an experiment that it names is not there.
        """
        if not spec.warm_start:
            return None
        sources: list[Source] = []
        problems: list[SpecProblem] = []
        for index, experiment_id in enumerate(spec.warm_start):
            try:
                record = self._work.experiments.get(experiment_id)
            except NotFound as error:
                problems.append(
                    SpecProblem(
                        pointer=f"/warm_start/{index}",
                        code="unknown_experiment",
                        message=f"{error}; name experiments of this installation",
                        given=experiment_id,
                    )
                )
                continue
            if experiment_id not in spec.warm_start[:index]:
                source_spec = ExperimentSpec.model_validate(record.spec)
                trials = as_trials(source_spec, self._work.trials.history(experiment_id))
                sources.append(Source(experiment_id=experiment_id, spec=source_spec, trials=trials))
        if problems:
            raise SpecRejected(problems)
        return warm_start(spec, sources)

    def add(self, experiment_id: str, warm: WarmStart) -> None:
        """Copies what a search starts with, within the transaction that creates its experiment."""
        self._connection.execute(
            insert(WarmStartRow).values(
                experiment_id=experiment_id,
                trials=[asdict(trial) for trial in warm.trials],
                skipped=[asdict(skipped) for skipped in warm.skipped],
                at_ms=self._now(),
            )
        )
        self._work.events.add(
            "experiment.warm_start",
            experiment_id=experiment_id,
            data={"num_used": len(warm.trials), "skipped": [asdict(skipped) for skipped in warm.skipped]},
        )

    def of_experiment(self, experiment_id: str) -> WarmStart | None:
        """What an experiment started with; None if it was given nothing."""
        row = self._connection.execute(
            select(WarmStartRow.trials, WarmStartRow.skipped).where(WarmStartRow.experiment_id == experiment_id)
        ).one_or_none()
        if row is None:
            return None
        return WarmStart(
            trials=tuple(
                WarmTrial(
                    **trial
                    | {
                        "state": TrialState(trial["state"]),
                        "cause": None if trial["cause"] is None else Cause(trial["cause"]),
                        "rungs": tuple((tokens, value) for tokens, value in trial["rungs"]),
                    }
                )
                for trial in row.trials
            ),
            skipped=tuple(Skipped(**skipped) for skipped in row.skipped),
        )
