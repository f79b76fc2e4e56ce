"""The conductor: everything a driver decides and writes, and nothing of Ray.

It is a state machine over the database: what is next is read from rows, what happened is written as rows, so a new
conductor of the next epoch carries on where the last one ended. Its memory holds no fact, only what saves asking again.
"""

import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from orchestrator import home as layout
from orchestrator.capacity import NodeCapacity
from orchestrator.errors import Fenced, StoreUnavailable
from orchestrator.execution.checkpoints import Shelf
from orchestrator.execution.recorder import Recorder, read_json
from orchestrator.execution.waiting_room import WaitingRoom
from orchestrator.search.past import past_of
from orchestrator.search.points import as_trials, points_of, replica_config
from orchestrator.search.propose import propose
from orchestrator.search.rungs import rung_seconds, rung_tokens
from orchestrator.search.told import Memory
from orchestrator.search.visible import without_added
from orchestrator.search.waiting import next_wait, promotes, waits_at_rungs
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState, is_terminal
from orchestrator.store.clock import now_ms
from orchestrator.store.control import STOP_WITHIN_S, stop_within_s
from orchestrator.store.queue import Standings
from orchestrator.store.records import (
    CheckpointRecord,
    Proposal,
    RungDecision,
    RunRecord,
    TrialKind,
    TrialRecord,
)
from orchestrator.store.session import Database
from orchestrator.store.trials import Remembered
from orchestrator.store.work import Work
from trainer.config import TrainConfig
from trainer.config.run import RunReport, RunRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

_STORE_PATIENCE_S = 60.0
"""How long the database may be away before the driver gives up; training waits meanwhile and loses nothing."""
_ASK_INTERVAL_S = 0.25
"""From one question for a place to the next, while there is none and none of our runs ends."""
_LAST_WORDS = ("finished", "stopped", "failed")
_STOPPED_BY_USER = "stopped by the user"
_STOP_FILE = "stop"
_EXIT_FENCED = 76


class Next(enum.Enum):
    """What to do when there is no run to start."""

    WAIT = enum.auto()
    FINISHED = enum.auto()


class Stopping(enum.Enum):
    """Why the experiment's runs are being stopped."""

    CANCEL = "cancelled by the user"
    PAUSE = "paused by the user"
    SHUTDOWN = "the orchestrator was stopped"


@dataclass(frozen=True, kw_only=True)
class Places:
    """How many trials run at a time, and what each of their workers gets."""

    max_concurrent: int
    num_threads: int
    use_gpu: bool
    nodes: tuple[NodeCapacity, ...] = ()
    """Of the cluster, where the `ray` service does not tell; () gives places without regard to other experiments."""


class Segment(NamedTuple):
    """How far a trial's next run goes.

    Attributes:
        config: of the trial.
        rungs: where it reports to be judged, in training tokens; () if it does at seconds.
        timed: those seconds.
        first_timed: the first of these rungs that the trial has not passed.
        wait: the rung at which the run ends, None if it is to run on.
    """

    config: TrainConfig
    rungs: tuple[int, ...]
    timed: tuple[float, ...]
    first_timed: int
    wait: int | None

    @property
    def stop_at_tokens(self) -> int | None:
        """Where the run ends, in training tokens."""
        return None if self.wait is None or self.timed else self.rungs[self.wait]


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
            self._warm = work.warm_starts.of_experiment(experiment_id)
        self._memory = Memory()
        self._remembered = Remembered()
        self._shelf = Shelf(database, root, epoch=epoch, spec=self.spec)
        self._recorder = Recorder(root=root, experiment_id=experiment_id, epoch=epoch, spec=self.spec)
        self._waiting_room = WaitingRoom(recorder=self._recorder)
        self._lock = threading.RLock()
        self._live: dict[str, RunRecord] = {}
        self._started: dict[str, int] = {}  # live runs that have said that they train, and when; not written yet
        self._shelved: set[str] = set()  # live runs of trials that may have checkpoints
        self._nothing_new = False
        self._asks_again_at = 0.0
        self._wants_run = True
        self._is_over = False  # there was nothing left to start when we were last asked, and nobody had us stop
        self._stopping: Stopping | None = None
        self._asked_at: dict[str, float] = {}  # live runs of trials that the user stops, and when they were asked first
        self._overdue: dict[str, str] = {}  # those of them whose time is over, and what is said of them
        self.stop_within_s: float | None = None
        """What the user said at the last `watch` about how long stopping may take."""

    @property
    def stopping(self) -> Stopping | None:
        """Why runs are being stopped, or None."""
        return self._stopping

    def live_runs(self) -> tuple[RunRecord, ...]:
        """The runs that this driver has started and that have not ended."""
        with self._lock:
            return tuple(self._live.values())

    def overdue(self) -> tuple[str, ...]:
        """The runs of stopped trials that had time enough to end: their processes are to be killed."""
        with self._lock:
            return tuple(run_id for run_id in self._overdue if run_id in self._live)

    def starting_runs(self) -> tuple[RunRecord, ...]:
        """The live runs that have not said yet that they train."""
        live = self._read(lambda work: work.runs.live(self.experiment_id))
        with self._lock:
            return tuple(run for run in live if run.state is RunState.STARTING and run.id not in self._started)

    def explain(self, runs: Sequence[RunRecord], reason: str) -> None:
        """Says why the trials of runs that have not begun to train do not get on."""

        def change(work: Work) -> None:
            work.experiments.hold(self.experiment_id, self.epoch)
            for run in runs:
                work.trials.explain(run.trial_id, reason)

        self.persist(change)

    def folder(self, run: RunRecord) -> Path:
        """The run's folder."""
        return self._root / run.folder

    def persist(self, change: Callable[[Work], T]) -> T:
        """Runs `change` in a transaction and returns its result; waits for a database that is away.

        Raises:
            Fenced: `change` writes under an epoch that is over.
            StoreUnavailable: the database was away for too long.
        """
        return self._patiently(lambda: self._database.run(change))

    def recover(self) -> None:
        """Takes over what an earlier driver left: its live runs are lost, batches that are complete are decided."""

        def take_over(work: Work) -> tuple[RunRecord, ...]:
            for run in work.runs.live(self.experiment_id):
                self._recorder.record_events(work, run)
            return work.trials.lose_runs(
                self.experiment_id, epoch=self.epoch, reason="its driver was lost", counts=False
            )

        for run in self.persist(take_over):
            logger.info("run %s was left by the last driver", run.id)
        self._obey()
        self._settle_waiting()

    def next_run(self) -> RunRequest | Next:
        """Starts the next run: of a trial that has to go on, else of a newly proposed one."""
        with self._lock:
            if self._stopping is not None:
                return Next.FINISHED
            if self._nothing_new or len(self._live) >= self._places.max_concurrent:
                return Next.WAIT
            if time.monotonic() < self._asks_again_at:
                return Next.WAIT
            if not self.spec.synchronous and not promotes(self.spec):
                begun = self._begin_new()
                if begun is not None:
                    return begun
            # Others have their turns too. Ours is asked for first, so that a proposal knows what is known by then.
            if not self._may_start():
                return Next.WAIT
            if self.spec.synchronous:
                # A batch is decided as a whole, so it has to be there as a whole before any of it arrives.
                while self._propose() is not None:
                    pass
            for trial in self._read(lambda work: work.trials.waiting(self.experiment_id)):
                if self._is_ready(trial):
                    return self._start(trial) if self._shelf.is_read(trial.id) else Next.WAIT
            following = self._promote() or (None if self.spec.synchronous else self._propose())
            if following is None and not self._live:
                following = self._promote(is_last=True)
            if following is not None:
                return self._start(following)
            if not self._live and promotes(self.spec):
                self._dismiss_waiting()
            if self._settle_waiting():  # a user may have stopped the one that the others waited for
                return Next.WAIT
            if self._read(lambda work: work.trials.unsettled(self.experiment_id)):
                self._nothing_new = True
                self._want(False)
                return Next.WAIT
            self._is_over = True
            return Next.FINISHED

    def report(self, run_id: str, report: RunReport) -> bool:
        """Records what a run says and returns whether it goes on."""
        with self._lock:
            run = self._live.get(run_id)
            if run is None:
                return False
            if report.kind == "started":
                # Nothing follows from it, so it need not be on disk by itself: it is written with what comes next.
                self._started[run_id] = now_ms()
                return True
            try:
                goes_on = self._take(run, report)
            except Fenced as error:
                self._leave_if_fenced()
                logger.info("run %s has ended meanwhile: %s", run_id, error)
                self._forget(run_id)
                return False
            if not goes_on or report.kind in _LAST_WORDS:
                self._forget(run_id)
                self._settle_waiting()
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

            def change(work: Work) -> None:
                self._note_started(work, run)
                stopped = self._overdue.get(run_id)
                self._recorder.record_lost(work, run_id, reason=stopped or reason, counts=counts and stopped is None)
                if stopped is not None:
                    self._end_stopped(work, run.trial_id, reason=stopped)

            try:
                self.persist(change)
            except Fenced:
                self._leave_if_fenced()
            has_checkpoints = run_id in self._shelved
            self._forget(run_id)
            if has_checkpoints:
                self._shelf.tidy(self._read(lambda work: work.trials.get(run.trial_id)))
            self._settle_waiting()

    def stop(self, why: Stopping) -> None:
        """Asks all live runs to write a checkpoint and end; no further one is started."""
        with self._lock:
            if self._stopping is None or why is Stopping.CANCEL:
                self._stopping = why
            for run in self._live.values():
                stop_run(self.folder(run))

    def settle(self) -> None:
        """Ends the experiment if it is over, else leaves it for the next driver. The last thing a driver does."""
        for trial in self._read(lambda work: work.trials.history(self.experiment_id)):
            self._shelf.sweep(trial)

        def change(work: Work) -> None:
            state = work.experiments.get(self.experiment_id).state
            if state is ExperimentState.CANCELLING:
                following, reason = ExperimentState.CANCELLED, Stopping.CANCEL.value
            elif state is ExperimentState.PAUSING and not self._is_over:
                following, reason = ExperimentState.PAUSED, Stopping.PAUSE.value
                work.trials.lose_runs(self.experiment_id, epoch=self.epoch, reason=reason, counts=False)
            elif not self._is_over or work.trials.unsettled(self.experiment_id):
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
        """Renews the lease, copies the progress of live runs, records new events, carries out wishes about trials.

        Returns the experiment's state.
        """
        with self._lock:
            runs, started = tuple(self._live.values()), dict(self._started)
        progress = {run.id: read_json(self.folder(run) / "progress.json") for run in runs}

        def change(work: Work) -> ExperimentState:
            state = work.experiments.renew(self.experiment_id, epoch=self.epoch, ttl_s=ttl_s)
            live = {run.id for run in work.runs.live(self.experiment_id)}
            for run in runs:
                if run.id in live:
                    if run.id in started:
                        self._recorder.record_started(work, run.id, at_ms=started[run.id])
                    if progress[run.id] is not None:
                        work.runs.progress(run.id, epoch=self.epoch, progress=progress[run.id] or {})
                    self._recorder.record_events(work, run)
            self.stop_within_s = work.experiments.get(self.experiment_id).stop_within_s
            return state

        state = self.persist(change)
        self._obey()
        with self._lock:
            for run_id in started:
                self._started.pop(run_id, None)
            # Somebody may have added a trial.
            self._nothing_new = False
        return state

    def _obey(self) -> None:
        """Carries out what users wished about single trials: those that run are asked to stop, the others end now."""

        def change(work: Work) -> tuple[RunRecord, ...]:
            wishes = work.commands.pending(self.experiment_id, "stop")
            if not wishes:
                return ()
            work.experiments.hold(self.experiment_id, self.epoch)
            live = {run.trial_id: run for run in work.runs.live(self.experiment_id)}
            for wish in wishes:
                if wish.trial_id is not None and wish.trial_id not in live:
                    self._end_stopped(work, wish.trial_id, reason=_STOPPED_BY_USER)
            return tuple(live[wish.trial_id] for wish in wishes if wish.trial_id in live)

        wishes = self._read(lambda work: work.commands.pending(self.experiment_id, "stop"))
        within_s = {wish.trial_id: stop_within_s(wish) for wish in wishes}
        for run in self.persist(change) if wishes else ():
            stop_run(self.folder(run))
            with self._lock:
                asked_at = self._asked_at.setdefault(run.id, time.monotonic())
                if time.monotonic() - asked_at >= within_s.get(run.trial_id, STOP_WITHIN_S):
                    limit = f"{within_s.get(run.trial_id, STOP_WITHIN_S):g} s"
                    self._overdue[run.id] = f"{_STOPPED_BY_USER}; killed, as it had not ended within {limit}"

    def _end_stopped(self, work: Work, trial_id: str, *, reason: str) -> None:
        """Ends a trial without a live run that the user has stopped, and answers the wish."""
        trial = work.trials.get(trial_id)
        if not is_terminal(trial.state):
            self._recorder.end_by_user(work, trial, reason=reason)
        self._answer_stop(work, trial_id)

    def _answer_stop(self, work: Work, trial_id: str) -> None:
        trial = work.trials.get(trial_id)
        applied = trial.cause is Cause.USER
        reason = "" if applied else f"the trial had {trial.state.value} already"
        work.commands.settle(self.experiment_id, "stop", applied=applied, reason=reason, trial_id=trial_id)

    def _may_start(self) -> bool:
        """Whether there is a place for a run of ours. Tells the others that we would take one."""
        if self._has_place(self._read(self._standings)):
            return True
        self._wait_for_place()
        return False

    def _standings(self, work: Work) -> Standings:
        return work.queue.standings(nodes=self._places.nodes, asking=self.experiment_id)

    def _has_place(self, standings: Standings) -> bool:
        verdict = standings.verdicts.get(self.experiment_id)
        if verdict is None or verdict.num_starts:
            return True
        # To find that there is nothing left to start.
        return not self._live and standings.num_left.get(self.experiment_id) == 0

    def _wait_for_place(self) -> None:
        self._want(True)
        self._asks_again_at = time.monotonic() + _ASK_INTERVAL_S

    def _want(self, wants_run: bool) -> None:
        if wants_run != self._wants_run:
            self._wants_run = wants_run
            self.persist(lambda work: work.queue.want(self.experiment_id, epoch=self.epoch, wants_run=wants_run))

    def _begin_new(self) -> RunRequest | Next | None:
        """Starts a run of a new trial, in the transaction that proposes it; None if that is not what comes next."""

        def change(work: Work) -> TrialRecord | tuple[Segment, RunRecord] | Next:
            work.experiments.hold(self.experiment_id, self.epoch)
            standings = self._standings(work)
            if not self._has_place(standings):
                return Next.WAIT
            if any(map(self._is_ready, work.trials.waiting(self.experiment_id))):
                return Next.FINISHED
            trial = self._ask(work)
            if trial is None:
                return Next.FINISHED
            if trial.state is TrialState.INFEASIBLE:
                return trial
            verdict = work.queue.turn(self.experiment_id, epoch=self.epoch, nodes=self._places.nodes, known=standings)
            if not verdict.num_starts:
                return Next.WAIT
            work.queue.took(self.experiment_id)
            segment = self._segment(trial)
            return segment, work.runs.add(trial, epoch=self.epoch, stop_at_tokens=segment.stop_at_tokens)

        while isinstance(begun := self.persist(change), TrialRecord):
            logger.info("trial %d is infeasible: %s", begun.number, begun.reason)
        if begun is Next.WAIT:
            self._wait_for_place()
        if isinstance(begun, Next):
            return None if begun is Next.FINISHED else begun
        return self._begun(*begun, None)

    def _start(self, trial: TrialRecord) -> RunRequest | Next:
        segment = self._segment(trial)
        checkpoint = None if trial.started_at_ms is None else self._shelf.newest_whole(trial.id)

        def change(work: Work) -> RunRecord | None:
            verdict = work.queue.turn(self.experiment_id, epoch=self.epoch, nodes=self._places.nodes)
            there = work.trials.held(trial.id, self.epoch)
            if not verdict.num_starts or is_terminal(there.state):
                return None
            work.queue.took(self.experiment_id)
            return work.runs.add(there, epoch=self.epoch, resume_from=checkpoint, stop_at_tokens=segment.stop_at_tokens)

        run = self.persist(change)
        if run is None:  # somebody else was faster, or the trial was stopped; it waits, or is not asked for again
            return Next.WAIT
        return self._begun(segment, run, checkpoint)

    def _segment(self, trial: TrialRecord) -> Segment:
        config = TrainConfig.model_validate(trial.config)
        rungs, timed = rung_tokens(self.spec, config), rung_seconds(self.spec)
        return Segment(
            config=config,
            rungs=rungs,
            timed=timed,
            first_timed=trial.rungs[-1].rung + 1 if timed and trial.rungs else 0,
            wait=next_wait(self.spec, trial, config, rungs or timed),
        )

    def _begun(self, segment: Segment, run: RunRecord, checkpoint: CheckpointRecord | None) -> RunRequest:
        self._wants_run = True
        self._live[run.id] = run
        if run.number:
            self._shelved.add(run.id)
        self._leave_spec()
        logger.info(
            "run %s of trial %d starts%s",
            run.id,
            run.trial_number,
            "" if checkpoint is None else f" from step {checkpoint.step}",
        )
        return RunRequest(
            run_id=run.id,
            config=segment.config,
            folder=str(self.folder(run)),
            resume_from=None if checkpoint is None else str(self._root / checkpoint.folder),
            rung_tokens=segment.rungs,
            stop_at_tokens=segment.stop_at_tokens,
            rung_seconds=segment.timed,
            first_timed_rung=segment.first_timed,
            stop_at_timed_rung=segment.wait if segment.timed else None,
            cache_folder=str(layout.token_cache_folder(self._root)),
            start_root=str(self._root),
            num_workers=self.spec.resources.num_workers,
            use_gpu=self._places.use_gpu,
            num_threads=self._places.num_threads,
        )

    def _leave_spec(self) -> None:
        """Puts the spec beside the trials, once: whoever has the folder can tell what it belongs to."""
        path = self._root / layout.experiment_folder(self.experiment_id) / layout.SPEC_FILE
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            unfinished.write_text(self.spec.model_dump_json(indent=1), encoding="utf-8")
            unfinished.replace(path)

    def _is_ready(self, trial: TrialRecord) -> bool:
        """False while a trial waits at a rung for what becomes of it."""
        return not trial.rungs or trial.rungs[-1].decision is RungDecision.CONTINUE

    def _propose(self) -> TrialRecord | None:
        """The next trial that can run; None if there is none now, or none any more."""
        while (trial := self.persist(self._ask)) is not None and trial.state is TrialState.INFEASIBLE:
            logger.info("trial %d is infeasible: %s", trial.number, trial.reason)
        return trial

    def _ask(self, work: Work) -> TrialRecord | None:
        """The next trial, recorded, feasible or not; None if there is none now, or none any more."""

        def choose(number: int, history: Sequence[TrialRecord]) -> Proposal | None:
            if self.spec.replicas > 1:
                return self._propose_replica(history)
            if self.spec.synchronous and not _may_open(self.spec, number, history):
                return None
            return self._proposal(number, history)

        return work.trials.propose(self.experiment_id, epoch=self.epoch, choose=choose, remembered=self._remembered)

    def _proposal(self, number: int, history: Sequence[TrialRecord]) -> Proposal | None:
        past = past_of(self.spec, history, warm=self._warm)
        return propose(self.spec, number=number, history=past, memory=self._memory)

    def _take(self, run: RunRecord, report: RunReport) -> bool:
        def change(work: Work) -> bool:
            self._note_started(work, run)
            if report.kind == "stopped" and self._stopping is Stopping.CANCEL:
                self._recorder.record_cancelled(work, run.id, report, reason=Stopping.CANCEL.value)
                return True
            if report.kind == "stopped" and report.cause is None:
                if work.commands.pending(self.experiment_id, "stop", trial_id=run.trial_id):
                    self._recorder.record_stopped_by_user(work, run.id, report, reason=_STOPPED_BY_USER)
                    self._answer_stop(work, run.trial_id)
                    return True
                if self._stopping is Stopping.PAUSE:
                    self._recorder.record_paused(work, run.id, report, reason=Stopping.PAUSE.value)
                    return True
            if report.kind == "stopped" and report.cause is None and self._stopping is Stopping.SHUTDOWN:
                reason = Stopping.SHUTDOWN.value
                self._recorder.record_lost(work, run.id, reason=reason, counts=False, report=report)
                return True
            return self._recorder.record(work, run.id, report)

        goes_on = self.persist(change)
        self._started.pop(run.id, None)
        if report.checkpoint is not None:
            self._shelved.add(run.id)
        # A trial without checkpoints has nothing to tidy up, and while no new one comes it needs those it has.
        if report.checkpoint is not None or ((not goes_on or report.kind in _LAST_WORDS) and run.id in self._shelved):
            self._shelf.tidy(self._read(lambda work: work.trials.get(run.trial_id)))
        return goes_on

    def _note_started(self, work: Work, run: RunRecord) -> None:
        """Writes that the run trains, if it has said so and nothing was written since."""
        if run.id in self._started:
            self._recorder.record_started(work, run.id, at_ms=self._started[run.id])

    def _propose_replica(self, history: Sequence[TrialRecord]) -> Proposal | None:
        """The next seed of the point that was opened last, else the first one of a new point."""
        points = points_of(self.spec, history)
        last = points[-1] if points and points[-1].record.kind is TrialKind.SEARCH else None
        if last is not None and len(last.replicas) < self.spec.replicas:
            first, replica = last.replicas[0], len(last.replicas)
            config = None if first.config is None else TrainConfig.model_validate(first.config)
            return Proposal(
                params=first.params,
                config=None if config is None else replica_config(config, replica),
                problem=first.reason if config is None else None,
                point=last.record.number,
                replica=replica,
            )
        number, told = len(points), as_trials(self.spec, history)
        if self.spec.synchronous and not _may_open(self.spec, number, told):
            return None
        proposal = self._proposal(number, told)
        return None if proposal is None else replace(proposal, point=number, replica=0)

    def _promote(self, *, is_last: bool = False) -> TrialRecord | None:
        """Promotes the trial that the next free place goes to, and returns it; None if there is none."""
        if not promotes(self.spec):
            return None

        # Mostly there is none, and reading costs less than writing nothing.
        if not self._read(lambda work: self._waiting_room.promotable(work, is_last=is_last)):
            return None
        return self.persist(lambda work: self._waiting_room.promote(work, is_last=is_last))

    def _dismiss_waiting(self) -> None:
        """Prunes the trials that wait for a promotion that will not come: nothing runs and nothing new starts."""
        for trial in self.persist(self._waiting_room.dismiss):
            self._shelf.tidy(trial)

    def _settle_waiting(self) -> bool:
        """Decides on what has arrived at a rung as a whole; returns whether there was anything to decide."""
        if self._stopping is not None or not waits_at_rungs(self.spec):
            return False
        has_any = self._read(self._waiting_room.has_any)
        for trial in self.persist(self._waiting_room.settle) if has_any else ():
            self._shelf.tidy(trial)
        return has_any

    def _forget(self, run_id: str) -> None:
        self._live.pop(run_id, None)
        self._asked_at.pop(run_id, None)
        self._overdue.pop(run_id, None)
        self._started.pop(run_id, None)
        self._shelved.discard(run_id)
        self._nothing_new = False
        self._asks_again_at = 0.0

    def _read(self, question: Callable[[Work], T]) -> T:
        def ask() -> T:
            with self._database.read() as work:
                return question(work)

        return self._patiently(ask)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        deadline = time.monotonic() + _STORE_PATIENCE_S
        while True:
            try:
                return attempt()
            except StoreUnavailable as error:
                if time.monotonic() > deadline:
                    raise
                logger.warning("the database is away, trying again: %s", error)
                time.sleep(0.5)

    def _leave_if_fenced(self) -> None:
        """Ends the process at once if a newer driver has taken over; its trials' processes end with it."""
        epoch = self._read(lambda work: work.experiments.get(self.experiment_id)).epoch
        if epoch != self.epoch:
            logger.error("epoch %d is over, epoch %d has taken over", self.epoch, epoch)
            os._exit(_EXIT_FENCED)


def stop_run(folder: Path) -> None:
    """Asks the run in `folder` to write a checkpoint and end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STOP_FILE).touch()


def _may_open(spec: ExperimentSpec, number: int, history: Sequence[TrialRecord]) -> bool:
    """Whether trial `number` of a synchronous experiment may be proposed: the batches before its own have ended, and
    the baselines that limits are relative to, so that no proposal depends on when they did."""
    named = {constraint.relative_to for constraint in spec.objective.constraints}
    number, history = without_added(number, history)
    index = number - len(spec.baselines)
    first_of_batch = number - index % spec.batch_size
    return all(
        trial.finished_at_ms is not None
        for trial in history
        if (trial.kind is TrialKind.SEARCH and trial.number < first_of_batch)
        or (trial.kind is TrialKind.BASELINE and trial.label in named)
    )


def _verdict(trials: Sequence[TrialRecord]) -> tuple[ExperimentState, str]:
    """How an experiment ended whose trials have all ended."""
    gave_results = [trial for trial in trials if trial.state in (TrialState.COMPLETED, TrialState.PRUNED)]
    if trials and not gave_results:
        reason = f"none of the {len(trials)} trials gave a result; the last one: {trials[-1].reason}"
        return ExperimentState.FAILED, reason
    return ExperimentState.COMPLETED, ""
