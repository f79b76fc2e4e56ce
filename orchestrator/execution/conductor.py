"""The conductor: everything a driver decides and writes, and nothing of Ray.

It is a state machine over the database: what is next is read from rows, what happened is written as rows, so a new
conductor of the next epoch carries on where the last one ended. Its memory holds no fact, only what saves asking again.
"""

import enum
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator import home as layout
from orchestrator.errors import Fenced, StoreUnavailable
from orchestrator.execution.checkpoints import Shelf
from orchestrator.search.propose import propose
from orchestrator.search.stop import decide, decide_batch, rung_tokens
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.store.records import Proposal, RungDecision, RunRecord, TrialKind, TrialRecord
from orchestrator.store.session import Database
from orchestrator.store.work import Work
from orchestrator.tracking.series import RunFolder, Source, evaluations, read_spikes
from trainer.config import TrainConfig
from trainer.config.run import RunReport, RunRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

_STORE_PATIENCE_S = 60.0
"""How long the database may be away before the driver gives up; training waits meanwhile and loses nothing."""
_STOP_FILE = "stop"
_EXIT_FENCED = 76


class Next(enum.Enum):
    """What to do when there is no run to start."""

    WAIT = enum.auto()
    FINISHED = enum.auto()


class Stopping(enum.Enum):
    """Why the experiment's runs are being stopped."""

    CANCEL = "cancelled by the user"
    SHUTDOWN = "the orchestrator was stopped"


@dataclass(frozen=True, kw_only=True)
class Places:
    """How many trials run at a time, and what each of their workers gets."""

    max_concurrent: int
    num_threads: int
    use_gpu: bool


class Conductor:
    """Drives one experiment under one epoch. Safe to call from the driver's two threads.

    Args:
        database: of the installation.
        root: the home folder.
        experiment_id: what to drive.
        epoch: the fencing epoch; once it is over, the process ends.
        places: what the cluster offers.
    """

    def __init__(self, database: Database, root: Path, *, experiment_id: str, epoch: int, places: Places) -> None:
        self.experiment_id = experiment_id
        self.epoch = epoch
        self._database = database
        self._root = root
        self._places = places
        with database.read() as work:
            self.spec = ExperimentSpec.model_validate(work.experiments.get(experiment_id).spec)
        self._shelf = Shelf(database, root, epoch=epoch)
        self._lock = threading.RLock()
        self._live: dict[str, RunRecord] = {}
        self._nothing_new = False
        self._stopping: Stopping | None = None

    @property
    def stopping(self) -> Stopping | None:
        """Why runs are being stopped, or None."""
        return self._stopping

    def live_runs(self) -> tuple[RunRecord, ...]:
        """The runs that this driver has started and that have not ended."""
        with self._lock:
            return tuple(self._live.values())

    def folder(self, run: RunRecord) -> Path:
        """The run's folder."""
        return self._root / run.folder

    def persist(self, change: Callable[[Work], T]) -> T:
        """Runs `change` in a transaction; waits for a database that is away. Ends the process if the epoch is over."""
        deadline = time.monotonic() + _STORE_PATIENCE_S
        while True:
            try:
                return self._database.run(change)
            except StoreUnavailable as error:
                if time.monotonic() > deadline:
                    raise
                logger.warning("the database is away, trying again: %s", error)
                time.sleep(0.5)

    def recover(self) -> None:
        """Takes over what an earlier driver left: its live runs are lost, batches that are complete are decided."""

        def take_over(work: Work) -> tuple[RunRecord, ...]:
            for run in work.runs.live(self.experiment_id):
                self._record_spikes(work, run)
            return work.trials.lose_runs(
                self.experiment_id, epoch=self.epoch, reason="its driver was lost", counts=False
            )

        for run in self.persist(take_over):
            logger.info("run %s was left by the last driver", run.id)
        self._decide_batches()

    def next_run(self) -> RunRequest | Next:
        """Starts the next run: of a trial that has to go on, else of a newly proposed one."""
        with self._lock:
            if self._stopping is not None:
                return Next.FINISHED
            if self._nothing_new or len(self._live) >= self._places.max_concurrent:
                return Next.WAIT
            if self.spec.synchronous:
                # A batch is decided as a whole, so it has to be there as a whole before any of it arrives.
                while self._propose() is not None:
                    pass
            for trial in self._read(lambda work: work.trials.waiting(self.experiment_id)):
                if self._is_ready(trial):
                    return self._start(trial)
            proposed = None if self.spec.synchronous else self._propose()
            if proposed is not None:
                return self._start(proposed)
            if self._read(lambda work: work.trials.unsettled(self.experiment_id)):
                self._nothing_new = True
                return Next.WAIT
            return Next.FINISHED

    def report(self, run_id: str, report: RunReport) -> bool:
        """Records what a run says and returns whether it goes on."""
        with self._lock:
            run = self._live.get(run_id)
            if run is None:
                return False
            try:
                goes_on = self._take(run, report)
            except Fenced as error:
                self._leave_if_fenced()
                logger.info("run %s has ended meanwhile: %s", run_id, error)
                self._forget(run_id)
                return False
            if not goes_on or report.kind in ("finished", "stopped", "failed"):
                self._forget(run_id)
                self._decide_batches()
            return goes_on

    def ended(self, run_id: str, problem: str | None) -> None:
        """Notes that a run's process is gone or free again. A run that did not say how it ended is lost.

        Args:
            problem: what happened to the process, None if it ended in good order.
        """
        with self._lock:
            run = self._live.get(run_id)
            if run is None:
                return
            reason = problem or "its process ended without a last word"
            counts = self._stopping is None

            def lose(work: Work) -> None:
                self._record_spikes(work, run)
                work.trials.lose_runs(
                    self.experiment_id, epoch=self.epoch, reason=reason, run_ids={run_id}, counts=counts
                )

            try:
                self.persist(lose)
            except Fenced:
                self._leave_if_fenced()
            self._forget(run_id)
            self._shelf.tidy(self._read(lambda work: work.trials.get(run.trial_id)))
            self._decide_batches()

    def stop(self, why: Stopping) -> None:
        """Asks all live runs to write a checkpoint and end; no further one is started."""
        with self._lock:
            if self._stopping is None or why is Stopping.CANCEL:
                self._stopping = why
            for run in self._live.values():
                folder = self.folder(run)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / _STOP_FILE).touch()

    def settle(self) -> None:
        """Ends the experiment if it is over, else leaves it for the next driver. The last thing a driver does."""
        for trial in self._read(lambda work: work.trials.history(self.experiment_id)):
            self._shelf.sweep(trial)

        def change(work: Work) -> None:
            state = work.experiments.get(self.experiment_id).state
            if state is ExperimentState.CANCELLING:
                following, reason = ExperimentState.CANCELLED, Stopping.CANCEL.value
            elif self._stopping is not None or work.trials.unsettled(self.experiment_id):
                work.trials.lose_runs(
                    self.experiment_id, epoch=self.epoch, reason=Stopping.SHUTDOWN.value, counts=False
                )
                work.experiments.release(self.experiment_id, epoch=self.epoch)
                return
            else:
                following, reason = _verdict(work.trials.history(self.experiment_id))
            work.experiments.settle(self.experiment_id, epoch=self.epoch, state=following, reason=reason)

        self.persist(change)

    def watch(self, *, ttl_s: float) -> ExperimentState:
        """Renews the lease, copies the progress of live runs, records new spikes; returns the experiment's state."""
        runs = self.live_runs()
        progress = {run.id: _read_json(self.folder(run) / "progress.json") for run in runs}

        def change(work: Work) -> ExperimentState:
            state = work.experiments.renew(self.experiment_id, epoch=self.epoch, ttl_s=ttl_s)
            live = {run.id for run in work.runs.live(self.experiment_id)}
            for run in runs:
                if run.id in live:
                    if progress[run.id] is not None:
                        work.runs.progress(run.id, epoch=self.epoch, progress=progress[run.id] or {})
                    self._record_spikes(work, run)
            return state

        return self.persist(change)

    def _start(self, trial: TrialRecord) -> RunRequest:
        config = TrainConfig.model_validate(trial.config)
        rungs = rung_tokens(self.spec, config)
        stop_at = None
        if self.spec.synchronous and trial.kind is TrialKind.SEARCH and len(trial.rungs) < len(rungs):
            stop_at = rungs[len(trial.rungs)]
        checkpoint = self._shelf.newest_whole(trial.id)
        run = self.persist(
            lambda work: work.runs.start(trial.id, epoch=self.epoch, resume_from=checkpoint, stop_at_tokens=stop_at)
        )
        self._live[run.id] = run
        logger.info(
            "run %s of trial %d starts%s",
            run.id,
            trial.number,
            "" if checkpoint is None else f" from step {checkpoint.step}",
        )
        return RunRequest(
            run_id=run.id,
            config=config,
            folder=str(self.folder(run)),
            resume_from=None if checkpoint is None else str(self._root / checkpoint.folder),
            rung_tokens=rungs,
            stop_at_tokens=stop_at,
            cache_folder=str(layout.token_cache_folder(self._root)),
            num_workers=self.spec.resources.num_workers,
            use_gpu=self._places.use_gpu,
            num_threads=self._places.num_threads,
        )

    def _is_ready(self, trial: TrialRecord) -> bool:
        """False while a trial of a synchronous experiment waits for the decision on its batch."""
        return not trial.rungs or trial.rungs[-1].decision is RungDecision.CONTINUE

    def _propose(self) -> TrialRecord | None:
        """The next trial that can run; None if there is none now, or none any more."""

        def choose(number: int, history: Sequence[TrialRecord]) -> Proposal | None:
            if self.spec.synchronous and not _may_open(self.spec, number, history):
                return None
            return propose(self.spec, number=number, history=history)

        while True:
            trial = self.persist(lambda work: work.trials.propose(self.experiment_id, epoch=self.epoch, choose=choose))
            if trial is None or trial.state is not TrialState.INFEASIBLE:
                return trial
            logger.info("trial %d is infeasible: %s", trial.number, trial.reason)

    def _take(self, run: RunRecord, report: RunReport) -> bool:
        trial_before = self._read(lambda work: work.trials.get(run.trial_id))
        if report.rung is not None and self.spec.synchronous and trial_before.kind is TrialKind.SEARCH:
            # Rungs so close that they share a step are arrived at one by one, each when the one before is decided.
            undecided = [rung for rung in trial_before.rungs if rung.decision is None]
            if undecided and report.rung > undecided[0].rung:
                report = report.model_copy(update={"rung": None})

        goes_on = self.persist(lambda work: self._write(work, run, trial_before, report))
        self._shelf.tidy(self._read(lambda work: work.trials.get(run.trial_id)))
        return goes_on

    def _write(self, work: Work, run: RunRecord, trial: TrialRecord, report: RunReport) -> bool:
        """One report as one transaction: checkpoint, evaluation, rung and whatever ends by it."""
        work.runs.hold_live(run.id, self.epoch)
        if report.kind == "started":
            work.runs.running(run.id, epoch=self.epoch, environment=_read_json(self.folder(run) / "environment.json"))
            return True
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
        if report.rung is not None:
            rung = work.rungs.record(
                run.id,
                epoch=self.epoch,
                rung=report.rung,
                tokens=report.tokens,
                value=self._objective(report),
                decide=None
                if self.spec.synchronous
                else lambda value, earlier: decide(self.spec, report.rung or 0, value, earlier),
            )
            if rung.decision is RungDecision.STOP:
                self._end_run(work, run, RunState.PRUNED, cause=Cause.ASHA, reason=rung.explanation or "")
                self._prune(work, work.trials.get(trial.id))
                return False
        if report.kind == "finished":
            self._end_run(work, run, RunState.COMPLETED)
            work.trials.settle(
                trial.id,
                epoch=self.epoch,
                state=TrialState.COMPLETED,
                objective=self._objective(report),
                objective_tokens=report.tokens,
                summary=None if report.summary is None else report.summary.model_dump(mode="json"),
            )
        elif report.kind == "stopped":
            self._take_stop(work, run, trial)
        elif report.kind == "failed":
            cause = Cause(report.cause or "error")
            reason = report.message or "no message"
            self._end_run(work, run, RunState.FAILED, cause=cause, reason=reason)
            work.trials.settle(
                trial.id,
                epoch=self.epoch,
                state=TrialState.FAILED,
                cause=cause,
                reason=reason,
                summary=self._partial_summary(work, trial.id),
            )
        return True

    def _take_stop(self, work: Work, run: RunRecord, trial: TrialRecord) -> None:
        if self._stopping is Stopping.CANCEL:
            self._end_run(work, run, RunState.CANCELLED, cause=Cause.USER, reason=Stopping.CANCEL.value)
        elif self._stopping is Stopping.SHUTDOWN:
            self._record_spikes(work, run)
            work.trials.lose_runs(
                self.experiment_id,
                epoch=self.epoch,
                reason=Stopping.SHUTDOWN.value,
                run_ids={run.id},
                counts=False,
            )
        else:
            # A segment of a synchronous experiment: the trial itself goes on once its batch is decided.
            self._end_run(work, run, RunState.COMPLETED)

    def _end_run(
        self, work: Work, run: RunRecord, state: RunState, *, cause: Cause | None = None, reason: str = ""
    ) -> None:
        self._record_spikes(work, run)
        if work.runs.get(run.id).state is RunState.STARTING and state not in (RunState.FAILED, RunState.CANCELLED):
            work.runs.running(run.id, epoch=self.epoch)
        work.runs.settle(
            run.id,
            epoch=self.epoch,
            state=state,
            cause=cause,
            reason=reason,
            progress=_read_json(self.folder(run) / "progress.json"),
        )

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
            folder=folder.relative_to(self._root).as_posix(),
            manifest_sha256=report.checkpoint.manifest_sha256,
        )

    def _record_spikes(self, work: Work, run: RunRecord) -> None:
        """Makes the spikes that a run recorded events, each once."""
        spikes = read_spikes(self.folder(run))
        if not spikes:
            return
        for spike in spikes[work.events.count("spike", run_id=run.id) :]:
            work.events.add("spike", experiment_id=self.experiment_id, trial_id=run.trial_id, run_id=run.id, data=spike)

    def _decide_batches(self) -> None:
        """Decides on every batch of a synchronous experiment that has arrived as a whole, and prunes what it stops."""
        if not self.spec.synchronous:
            return

        def change(work: Work) -> None:
            history = work.trials.history(self.experiment_id)
            undecided = {
                (rung.batch, rung.rung)
                for trial in history
                for rung in trial.rungs
                if rung.batch is not None and rung.decision is None and trial.finished_at_ms is None
            }
            for batch, rung in sorted(undecided):
                work.rungs.decide_batch(
                    self.experiment_id,
                    epoch=self.epoch,
                    batch=batch,
                    rung=rung,
                    decide=lambda arrived, num_failed, rung=rung: decide_batch(self.spec, rung, arrived, num_failed),
                )
            for trial in work.trials.waiting(self.experiment_id):
                if trial.rungs and trial.rungs[-1].decision is RungDecision.STOP:
                    self._prune(work, trial)

        if self._stopping is None:
            self.persist(change)
            for trial in self._read(lambda work: work.trials.history(self.experiment_id)):
                if trial.state is TrialState.PRUNED:
                    self._shelf.tidy(trial)

    def _prune(self, work: Work, trial: TrialRecord) -> None:
        rung = trial.rungs[-1]
        work.trials.settle(
            trial.id,
            epoch=self.epoch,
            state=TrialState.PRUNED,
            cause=Cause.ASHA,
            reason=rung.explanation or "",
            objective=rung.value,
            objective_tokens=rung.tokens,
            summary=self._partial_summary(work, trial.id),
        )

    def _objective(self, report: RunReport) -> float | None:
        evaluation = (report.evaluation or {}).get(self.spec.objective.domain)
        if evaluation is None:
            return None
        return evaluation.bits_per_byte if self.spec.objective.metric == "eval/bits_per_byte" else evaluation.loss

    def _partial_summary(self, work: Work, trial_id: str) -> dict[str, Any]:
        """What is known of a trial that did not finish: the fields of RunSummary that its last evaluation gave."""
        runs = work.runs.of_trial(trial_id)
        points = evaluations(Source(id=trial_id, runs=tuple(RunFolder(run.id, self.folder(run)) for run in runs)))
        summary: dict[str, Any] = {
            "initial_bits_per_byte": {point.domain: point.bits_per_byte for point in points if point.step == 0},
            "bits_per_byte": {point.domain: point.bits_per_byte for point in points if point.step == points[-1].step},
        }
        progress = _read_json(self.folder(runs[-1]) / "progress.json") if runs else None
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

    def _forget(self, run_id: str) -> None:
        self._live.pop(run_id, None)
        self._nothing_new = False

    def _read(self, question: Callable[[Work], T]) -> T:
        def ask() -> T:
            with self._database.read() as work:
                return question(work)

        deadline = time.monotonic() + _STORE_PATIENCE_S
        while True:
            try:
                return ask()
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _leave_if_fenced(self) -> None:
        """Ends the process at once if a newer driver has taken over; its trials' processes end with it."""
        epoch = self._read(lambda work: work.experiments.get(self.experiment_id)).epoch
        if epoch != self.epoch:
            logger.error("epoch %d is over, epoch %d has taken over", self.epoch, epoch)
            os._exit(_EXIT_FENCED)


def _may_open(spec: ExperimentSpec, number: int, history: Sequence[TrialRecord]) -> bool:
    """Whether trial `number` of a synchronous experiment may be proposed: the batches before its own have ended."""
    index = number - len(spec.baselines)
    first_of_batch = number - index % spec.batch_size
    return all(
        trial.finished_at_ms is not None
        for trial in history
        if trial.kind is TrialKind.SEARCH and trial.number < first_of_batch
    )


def _verdict(trials: Sequence[TrialRecord]) -> tuple[ExperimentState, str]:
    """How an experiment ended whose trials have all ended."""
    gave_results = [trial for trial in trials if trial.state in (TrialState.COMPLETED, TrialState.PRUNED)]
    if trials and not gave_results:
        reason = f"none of the {len(trials)} trials gave a result; the last one: {trials[-1].reason}"
        return ExperimentState.FAILED, reason
    return ExperimentState.COMPLETED, ""


def _read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file that is replaced atomically; None if it is not there yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
