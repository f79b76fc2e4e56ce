"""The recorder: one report of a run becomes one transaction, and whatever ends by it ends in the same one."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.objective import FurtherObjective, LastValue, Objective
from orchestrator.search.outcome import figure_of, reduced, references, veto
from orchestrator.search.waiting import on_arrival, waiting_reason
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, RunState, TrialState
from orchestrator.store.records import RungDecision, RunRecord, TrialKind, TrialRecord
from orchestrator.store.work import Work
from orchestrator.tracking.series import RunFolder, Source, evaluations, read_alarms, read_spikes
from trainer.config.run import RunReport


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """Writes what runs report. All methods work within the caller's transaction and raise Fenced if the epoch is over.

    Attributes:
        root: the home folder.
        experiment_id: whose runs they are.
        epoch: of the driver.
        spec: of the experiment.
    """

    root: Path
    experiment_id: str
    epoch: int
    spec: ExperimentSpec

    def folder(self, run: RunRecord) -> Path:
        """The run's folder."""
        return self.root / run.folder

    def record(self, work: Work, run_id: str, report: RunReport) -> bool:
        """Records a report and returns whether the run goes on.

        A run that a rule of its config stopped is pruned, and its trial with it, with the rule as the reason. Any other
        run of kind `stopped` that was not asked to ended at a rung: the run is completed, and its trial waits there for
        a decision.

        Raises:
            Fenced: the run is not live any more.
        """
        if report.kind == "started":
            self.record_started(work, run_id)
            return True
        run = self._hold_live(work, run_id)
        trial = work.trials.get(run.trial_id)
        self._record_checkpoint(work, run, report)
        if report.evaluation is not None:
            figures = {domain: evaluation.model_dump() for domain, evaluation in report.evaluation.items()}
            work.events.add(
                "evaluation",
                experiment_id=self.experiment_id,
                trial_id=trial.id,
                run_id=run.id,
                data={"step": report.step, "tokens": report.tokens, "domains": figures},
            )
        if report.rung is not None and self._is_next(trial, report.rung):
            rung = work.rungs.record(
                run.id,
                epoch=self.epoch,
                rung=report.rung,
                tokens=report.tokens,
                value=self._objective(work, trial.id, report)[0],
                decide=lambda value, earlier: on_arrival(self.spec, trial, report.rung or 0, value, earlier),
            )
            if rung.decision is RungDecision.STOP:
                self._end_run(work, run, RunState.PRUNED, cause=self._scheduled(), reason=rung.explanation or "")
                self.prune(work, work.trials.get(trial.id))
                return False
        objective, objective_tokens = self._objective(work, trial.id, report)
        if report.kind == "finished":
            self._end_run(work, run, RunState.COMPLETED)
            work.trials.settle_held(
                trial,
                epoch=self.epoch,
                state=TrialState.COMPLETED,
                objective=objective,
                objective_tokens=objective_tokens,
                summary=None if report.summary is None else report.summary.model_dump(mode="json"),
                further_values=self._further_values(work, trial.id, report),
            )
            self._record_vetoes(work)
        elif report.kind == "stopped" and report.cause == "stop_rule":
            reason = report.message or "no message"
            self._end_run(work, run, RunState.PRUNED, cause=Cause.STOP_RULE, reason=reason)
            work.trials.settle_held(
                trial,
                epoch=self.epoch,
                state=TrialState.PRUNED,
                cause=Cause.STOP_RULE,
                reason=reason,
                objective=objective,
                objective_tokens=objective_tokens,
                summary=self._partial_summary(work, trial.id),
            )
        elif report.kind == "stopped":
            self._end_run(work, run, RunState.COMPLETED)
            work.trials.explain(trial.id, waiting_reason(self.spec, work.trials.get(trial.id)))
        elif report.kind == "failed":
            cause = Cause(report.cause or "error")
            reason = report.message or "no message"
            self._end_run(work, run, RunState.FAILED, cause=cause, reason=reason)
            work.trials.settle_held(
                trial,
                epoch=self.epoch,
                state=TrialState.FAILED,
                cause=cause,
                reason=reason,
                summary=self._partial_summary(work, trial.id),
            )
        return True

    def record_started(self, work: Work, run_id: str, *, at_ms: int | None = None) -> None:
        """Records that a run's worker trains; again, it changes nothing.

        Args:
            at_ms: when it said so; now by default.
        """
        run = self._hold_live(work, run_id)
        if run.state is RunState.STARTING:
            work.runs.begin(run, environment=read_json(self.folder(run) / "environment.json"), at_ms=at_ms)

    def record_cancelled(self, work: Work, run_id: str, report: RunReport, *, reason: str) -> None:
        """Records that a run stopped because its experiment is being cancelled."""
        run = self._hold_live(work, run_id)
        self._record_checkpoint(work, run, report)
        self._end_run(work, run, RunState.CANCELLED, cause=Cause.USER, reason=reason)

    def record_paused(self, work: Work, run_id: str, report: RunReport, *, reason: str) -> None:
        """Records that a run wrote a checkpoint and ended because its experiment is paused; its trial goes on later."""
        run = self._hold_live(work, run_id)
        self._record_checkpoint(work, run, report)
        self._end_run(work, run, RunState.COMPLETED, reason=reason)
        work.trials.set_aside(work.trials.get(run.trial_id), reason=reason)

    def record_stopped_by_user(self, work: Work, run_id: str, report: RunReport, *, reason: str) -> None:
        """Records that a run stopped because a user asked its trial to: that ends too, with what it came to."""
        run = self._hold_live(work, run_id)
        self._record_checkpoint(work, run, report)
        self._end_run(work, run, RunState.PRUNED, cause=Cause.USER, reason=reason)
        self.end_by_user(work, work.trials.get(run.trial_id), reason=reason)

    def end_by_user(self, work: Work, trial: TrialRecord, *, reason: str) -> None:
        """Ends a trial without a live run as a user wished, with the objective of its last evaluation."""
        objective, tokens = self._last_objective(work, trial)
        work.trials.settle(
            trial.id,
            epoch=self.epoch,
            state=TrialState.PRUNED,
            cause=Cause.USER,
            reason=reason,
            objective=objective,
            objective_tokens=tokens,
            summary=self._partial_summary(work, trial.id),
        )

    def record_lost(
        self, work: Work, run_id: str, *, reason: str, counts: bool, report: RunReport | None = None
    ) -> None:
        """Records that a run is over without a verdict: its trial is to go on from its newest checkpoint.

        Args:
            counts: whether this uses up a retry.
            report: its last word, if it had one.
        """
        run = self._hold_live(work, run_id)
        if report is not None:
            self._record_checkpoint(work, run, report)
        self.record_events(work, run)
        work.trials.lose_runs(self.experiment_id, epoch=self.epoch, reason=reason, run_ids={run_id}, counts=counts)

    def _end_run(
        self, work: Work, run: RunRecord, state: RunState, *, cause: Cause | None = None, reason: str = ""
    ) -> None:
        self.record_events(work, run)
        if run.state is RunState.STARTING and state not in (RunState.FAILED, RunState.CANCELLED):
            run = work.runs.begin(run)
        progress = read_json(self.folder(run) / "progress.json")
        work.runs.end(run, state, cause=cause, reason=reason, progress=progress)

    def _hold_live(self, work: Work, run_id: str) -> RunRecord:
        """The live run, read once: its experiment is known, and held before."""
        work.experiments.hold(self.experiment_id, self.epoch)
        return work.runs.hold_live(run_id, self.epoch)

    def _record_checkpoint(self, work: Work, run: RunRecord, report: RunReport) -> None:
        if report.checkpoint is None:
            return
        folder = Path(report.checkpoint.folder)
        if not folder.is_relative_to(self.folder(run)):
            return  # the one it resumed from, of an earlier run; its row is there
        work.checkpoints.commit(
            run.id,
            epoch=self.epoch,
            step=report.checkpoint.step,
            tokens=report.checkpoint.tokens,
            folder=folder.relative_to(self.root).as_posix(),
            manifest_sha256=report.checkpoint.manifest_sha256,
            objective=self._measured(report),
        )

    def record_events(self, work: Work, run: RunRecord) -> None:
        """Makes the spikes and alarms that a run recorded events, each once."""
        folder = self.folder(run)
        for kind, recorded in (("spike", read_spikes(folder)), ("alarm", read_alarms(folder))):
            if not recorded:
                continue
            for data in recorded[work.events.count(kind, run_id=run.id) :]:
                work.events.add(kind, experiment_id=self.experiment_id, trial_id=run.trial_id, run_id=run.id, data=data)

    def prune(self, work: Work, trial: TrialRecord) -> None:
        """Ends a trial that its last rung has stopped."""
        rung = trial.rungs[-1]
        work.trials.settle(
            trial.id,
            epoch=self.epoch,
            state=TrialState.PRUNED,
            cause=self._scheduled(),
            reason=rung.explanation or "",
            objective=rung.value,
            objective_tokens=rung.tokens,
            summary=self._partial_summary(work, trial.id),
        )

    def _scheduled(self) -> Cause:
        """The cause of what the experiment's scheduler stops."""
        return Cause(self.spec.scheduler.kind)

    def _is_next(self, trial: TrialRecord, rung: int) -> bool:
        """False for a rung whose trial has an earlier one undecided.

        Rungs so close that they share a step are arrived at one by one, each when the one before is decided.
        """
        undecided = [record.rung for record in trial.rungs if record.decision is None]
        return trial.kind is not TrialKind.SEARCH or not undecided or rung <= undecided[0]

    def _objective(
        self, work: Work, trial_id: str, report: RunReport, objective: Objective | FurtherObjective | None = None
    ) -> tuple[float | None, int]:
        """An objective's value when `report` came, and the training tokens it belongs to.

        It is of the report's evaluation, or of all that are recorded by then, as the spec reduces them.

        Args:
            objective: with an evaluation metric; by default the first.
        """
        objective = self.spec.objective if objective is None else objective
        measured = self._measured(report, objective)
        if measured is None or isinstance(objective.value, LastValue):
            return measured, report.tokens
        recorded = self._evaluated(work, trial_id, objective)
        values = {tokens: value for tokens, value in recorded.items() if tokens <= report.tokens}
        return reduced(objective, values | {report.tokens: measured}) or (measured, report.tokens)

    def _last_objective(self, work: Work, trial: TrialRecord) -> tuple[float | None, int | None]:
        """The objective's value of all that a trial has recorded, and its tokens; None if it was never evaluated."""
        values = self._evaluated(work, trial.id, self.spec.objective)
        return reduced(self.spec.objective, values) or (None, None)

    def _evaluated(self, work: Work, trial_id: str, objective: Objective | FurtherObjective) -> dict[int, float]:
        """Training tokens -> an objective's metric there, of every evaluation that a trial has recorded."""
        values: dict[int, float] = {}
        for event in work.events.of_trial("evaluation", trial_id=trial_id):
            figures = event.data["domains"].get(objective.domain)
            # A run that went on from a checkpoint evaluates again what an earlier one had; the newest counts.
            if figures is not None:
                figure = figures[objective.metric.removeprefix("eval/")]
                values[event.data["tokens"]] = math.nan if figure is None else figure
        return values

    def _measured(self, report: RunReport, objective: Objective | FurtherObjective | None = None) -> float | None:
        """An objective's metric (by default the first's) in the report's own evaluation, None if it has none."""
        objective = self.spec.objective if objective is None else objective
        evaluation = (report.evaluation or {}).get(objective.domain)
        if evaluation is None:
            return None
        return evaluation.bits_per_byte if objective.metric == "eval/bits_per_byte" else evaluation.loss

    def _further_values(self, work: Work, trial_id: str, report: RunReport) -> list[float | None] | None:
        """What a finished run has of the objectives beside the first; None if there are none."""
        if not self.spec.further_objectives:
            return None
        summary = None if report.summary is None else report.summary.model_dump(mode="json")
        return [
            self._objective(work, trial_id, report, objective)[0]
            if objective.metric.startswith("eval/")
            else figure_of(objective.metric, summary)
            for objective in self.spec.further_objectives
        ]

    def _record_vetoes(self, work: Work) -> None:
        """Notes which completed trials cannot win; a baseline that completes may make it known of earlier ones."""
        objective = self.spec.objective
        if not any(constraint.veto for constraint in objective.constraints):
            return
        trials = work.trials.history(self.experiment_id)
        known = references(objective, trials)
        for trial in trials:
            if trial.state is TrialState.COMPLETED and (why := veto(objective, trial, known)) != trial.veto:
                work.trials.set_veto(trial.id, why)

    def _partial_summary(self, work: Work, trial_id: str) -> dict[str, Any]:
        """What is known of a trial that did not finish: the fields of RunSummary that its last evaluation gave."""
        runs = work.runs.of_trial(trial_id)
        points = evaluations(Source(id=trial_id, runs=tuple(RunFolder(run.id, self.folder(run)) for run in runs)))
        summary: dict[str, Any] = {
            "initial_bits_per_byte": {point.domain: point.bits_per_byte for point in points if point.step == 0},
            "bits_per_byte": {point.domain: point.bits_per_byte for point in points if point.step == points[-1].step},
        }
        progress = read_json(self.folder(runs[-1]) / "progress.json") if runs else None
        if progress is not None:
            summary |= {
                "worst_max_violation": progress["max_violation"],
                "worst_max_violation_layer": progress["max_violation_layer"],
                "min_token_entropy": progress["token_entropy"],
                "max_dead_fraction": progress["dead_fraction"],
                "num_spikes": progress["num_spikes"],
                "tokens_per_s": progress["tokens_per_s"],
            }
        return summary


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file that is replaced atomically; None if it is not there yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
