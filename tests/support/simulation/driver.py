"""The simulated driver and the trials it runs: what `orchestrator.execution.conductor` does, against the store."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

from orchestrator.errors import Fenced, IllegalTransition
from orchestrator.search.population import Copy
from orchestrator.search.promote import never_promoted, promoted
from orchestrator.search.waiting import promotes
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState
from orchestrator.store.records import RungDecision, TrialKind
from tests.support.simulation import rules
from tests.support.simulation.world import Process, Steps, World

T = TypeVar("T")

_TTL_S = 15.0
_MAX_CONCURRENT = 2


class Report(NamedTuple):
    """What a trial's process says; it waits for the answer and repeats itself until it has one."""

    sender: Process
    number: int
    run_id: str
    kind: str
    step: int
    state: int
    rung: int | None = None
    checkpoint: str | None = None


def drive(world: World, me: Process, experiment_id: str, epoch: int) -> Steps:
    """Drives an experiment under an epoch until it is over, or somebody else does."""
    yield
    world.disk.drivers[me.host, experiment_id] = (me, epoch)
    driver = Driver(world, me, experiment_id, epoch)
    world.spawn("watch", me.host, lambda it: driver.watch(), parent=me)
    try:
        yield from driver.run()
    except (Fenced, IllegalTransition) as error:
        world.trace.append(("driver", epoch, type(error).__name__))
    driver.end_trials()


class Driver:
    """An experiment's, under one epoch."""

    def __init__(self, world: World, me: Process, experiment_id: str, epoch: int) -> None:
        self.world, self.me, self.id, self.epoch = world, me, experiment_id, epoch
        self.spec: ExperimentSpec = world.read(
            lambda work: ExperimentSpec.model_validate(work.experiments.get(experiment_id).spec)
        )
        self.promotes = promotes(self.spec)
        self.live: dict[str, Process] = {}
        self.stopping: ExperimentState | None = None

    def run(self) -> Steps:
        yield from self.persist(
            lambda work: work.trials.lose_runs(self.id, epoch=self.epoch, reason="its driver was lost", counts=False)
        )
        yield from self.settle_waiting()
        while self.live or not (self.stopping or self.is_finished()):
            yield
            while self.me.inbox:
                yield from self.take(self.me.inbox.popleft())
            yield from self.note_ends()
            if not self.stopping:
                yield from self.start_next()
        yield from self.persist(self.settle)

    def watch(self) -> Steps:
        """The driver's second thread: keeps the lease and hears of wishes."""
        while True:
            try:
                state = yield from self.persist(
                    lambda work: work.experiments.renew(self.id, epoch=self.epoch, ttl_s=_TTL_S)
                )
            except Fenced:
                self.end_trials()
                self.world.kill(self.me)
                return
            if state in (ExperimentState.CANCELLING, ExperimentState.PAUSING):
                self.stopping = state
                for trial in self.live.values():
                    trial.stop = True

    def persist(self, change: Callable[[Any], T]) -> Generator[None, None, T]:
        return self.world.patiently(change, by=(self.id, self.epoch))

    def is_finished(self) -> bool:
        with self.world.store.read() as work:
            history = work.trials.history(self.id)
            return not work.trials.unsettled(self.id) and rules.next_of(self.spec, history) is None

    def settle(self, work: Any) -> None:
        state = work.experiments.get(self.id).state
        if state is ExperimentState.CANCELLING:
            state = ExperimentState.CANCELLED
        elif state is ExperimentState.PAUSING and work.trials.unsettled(self.id):
            state = ExperimentState.PAUSED
            work.trials.lose_runs(self.id, epoch=self.epoch, reason="paused", counts=False)
        elif self.stopping and work.trials.unsettled(self.id):
            # It was to be paused and is not any more: the next driver goes on.
            work.experiments.release(self.id, epoch=self.epoch)
            return
        else:
            gave = any(
                trial.state in (TrialState.COMPLETED, TrialState.PRUNED) for trial in work.trials.history(self.id)
            )
            state = ExperimentState.COMPLETED if gave else ExperimentState.FAILED
        work.experiments.settle(self.id, epoch=self.epoch, state=state)

    def start_next(self) -> Steps:
        def propose(work: Any) -> Any:
            return work.trials.propose(
                self.id, epoch=self.epoch, choose=lambda number, history: rules.next_of(self.spec, history)
            )

        if len(self.live) >= _MAX_CONCURRENT:
            return
        if self.spec.synchronous:
            while (yield from self.persist(propose)) is not None:
                pass
        waiting = self.world.read(lambda work: work.trials.waiting(self.id))
        trial = next((trial for trial in waiting if _is_ready(trial)), None)
        if trial is None and self.promotes:
            trial = yield from self.persist(self.promote)
        if trial is None and not self.spec.synchronous:
            trial = yield from self.persist(propose)
        if trial is None and self.promotes and not self.live:
            trial = yield from self.persist(lambda work: self.promote(work, is_last=True))
            if trial is None:
                yield from self.persist(self.dismiss)
        if trial is not None:
            yield from self.start(trial)
        elif not self.live:
            # One that ended in the last look at those that wait may be what the others waited for.
            yield from self.settle_waiting()

    def promote(self, work: Any, *, is_last: bool = False) -> Any:
        """The trial that a free place goes to, None if there is none."""
        work.experiments.hold(self.id, self.epoch)
        live = {run.trial_id for run in work.runs.live(self.id)}
        verdicts = promoted(self.spec, work.trials.history(self.id), live=live, is_last=is_last)
        for trial_id, rung, decision in verdicts:
            work.rungs.decide(trial_id, rung, decision, epoch=self.epoch)
        return work.trials.get(verdicts[0].trial_id) if verdicts else None

    def dismiss(self, work: Any) -> None:
        """Ends what waits for a promotion that will not come."""
        work.experiments.hold(self.id, self.epoch)
        for trial_id, rung, decision in never_promoted(self.spec, work.trials.history(self.id)):
            work.rungs.decide(trial_id, rung, decision, epoch=self.epoch)
        self.prune_stopped(work)

    def start(self, trial: Any) -> Steps:
        world = self.world
        while True:
            checkpoint = world.read(lambda work: work.checkpoints.newest(trial.id))
            if checkpoint is None or world.disk.checkpoints[checkpoint.folder][2] == "whole":
                break
            yield from self.persist(lambda work, id=checkpoint.id: work.checkpoints.discard(id, epoch=self.epoch))
        ancestry = world.read(lambda work: rules.ancestry(work, trial))
        stop_step = rules.next_stop(self.spec, trial, begin=ancestry[-1][1])
        run = yield from self.persist(
            lambda work: work.runs.start(
                trial.id,
                epoch=self.epoch,
                resume_from=checkpoint,
                stop_at_tokens=None if stop_step is None else stop_step * rules.STEP_TOKENS,
            )
        )
        world.disk.spools[run.id] = []
        if checkpoint is None and trial.parent_checkpoint_id is not None:
            checkpoint = world.read(lambda work: work.checkpoints.get(trial.parent_checkpoint_id))
        folder = None if checkpoint is None else checkpoint.folder
        self.live[run.id] = world.spawn(
            "trial",
            self.me.host,
            lambda it: train(world, it, self.me, run.id, ancestry, begins_at=folder, stop_step=stop_step),
            parent=self.me,
        )

    def take(self, report: Report) -> Steps:
        goes_on = False
        if report.run_id in self.live:
            try:
                goes_on = yield from self.persist(lambda work: self.record(work, report))
            except Fenced:
                epoch = self.world.read(lambda work: work.experiments.get(self.id)).epoch
                if epoch != self.epoch:
                    raise
                self.forget(report.run_id)
            else:
                if not goes_on or report.kind in ("finished", "stopped"):
                    self.forget(report.run_id)
                    yield from self.settle_waiting()
        self.world.send(report.sender, (report.number, goes_on))

    def record(self, work: Any, report: Report) -> bool:
        run = work.runs.hold_live(report.run_id, self.epoch)
        if report.kind == "started":
            work.runs.running(run.id, epoch=self.epoch)
            return True
        tokens, value = report.step * rules.STEP_TOKENS, rules.value_of(report.state)
        if report.checkpoint is not None:
            work.checkpoints.commit(
                run.id,
                epoch=self.epoch,
                step=report.step,
                tokens=tokens,
                folder=report.checkpoint,
                manifest_sha256="",
            )
        trial = work.trials.get(run.trial_id)
        undecided = [record.rung for record in trial.rungs if record.decision is None]
        if report.rung is not None and (not undecided or report.rung <= undecided[0]):
            rung = work.rungs.record(
                run.id,
                epoch=self.epoch,
                rung=report.rung,
                tokens=tokens,
                value=value,
                decide=rules.on_arrival(self.spec, trial, report.rung, begin=rules.ancestry(work, trial)[-1][1]),
            )
            if rung.decision is RungDecision.STOP:
                self.end_run(work, run, RunState.PRUNED, cause=Cause(self.spec.scheduler.kind))
                self.prune(work, trial.id, rung)
                return False
        if report.kind == "finished":
            self.end_run(work, run, RunState.COMPLETED)
            work.trials.settle(
                trial.id,
                epoch=self.epoch,
                state=TrialState.COMPLETED,
                objective=value,
                objective_tokens=tokens,
            )
        elif report.kind == "stopped" and self.stopping is ExperimentState.CANCELLING:
            self.end_run(work, run, RunState.CANCELLED, cause=Cause.USER)
        elif report.kind == "stopped" and self.stopping:
            work.trials.lose_runs(self.id, epoch=self.epoch, reason="paused", run_ids={run.id}, counts=False)
        elif report.kind == "stopped":
            self.end_run(work, run, RunState.COMPLETED)
        return True

    def end_run(self, work: Any, run: Any, state: RunState, cause: Cause | None = None) -> None:
        if run.state is RunState.STARTING and state is not RunState.CANCELLED:
            work.runs.running(run.id, epoch=self.epoch)
        work.runs.settle(run.id, epoch=self.epoch, state=state, cause=cause)

    def prune(self, work: Any, trial_id: str, rung: Any) -> None:
        work.trials.settle(
            trial_id,
            epoch=self.epoch,
            state=TrialState.PRUNED,
            cause=Cause(self.spec.scheduler.kind),
            reason=rung.explanation,
            objective=rung.value,
            objective_tokens=rung.tokens,
        )

    def note_ends(self) -> Steps:
        """Runs whose process is gone without a last word are lost."""
        for run_id, trial in list(self.live.items()):
            if trial.is_alive:
                continue
            try:
                yield from self.persist(
                    lambda work, run_id=run_id: work.trials.lose_runs(
                        self.id, epoch=self.epoch, reason="process lost", run_ids={run_id}
                    )
                )
            finally:
                self.forget(run_id)
            yield from self.settle_waiting()

    def settle_waiting(self) -> Steps:
        """Decides on what has arrived as a whole; what waits for a place is decided on when there is one."""
        waits = self.spec.synchronous or self.spec.replicas > 1 or self.spec.scheduler.kind == "pbt"
        if waits and not self.stopping:
            yield from self.persist(self.decide_waiting)

    def decide_waiting(self, work: Any) -> None:
        work.experiments.hold(self.id, self.epoch)
        live = {run.trial_id for run in work.runs.live(self.id)}
        verdicts, copies = rules.settled(self.spec, work.trials.history(self.id), live)
        for copy in copies:
            self.add(work, copy)
        for trial_id, rung, decision in verdicts:
            work.rungs.decide(trial_id, rung, decision, epoch=self.epoch)
        self.prune_stopped(work)

    def add(self, work: Any, copy: Copy) -> None:
        """Adds the trial that goes on from its parent's checkpoint at a rung in place of one that ends."""
        tokens = rules.RUNG_STEPS[copy.rung] * rules.STEP_TOKENS
        (checkpoint,) = {
            found.step: found for found in work.checkpoints.of_trial(copy.parent.id) if found.tokens == tokens
        }.values()
        number = len(work.trials.history(self.id))
        work.trials.insert(
            self.id,
            number=number,
            kind=TrialKind.SEARCH,
            label=None,
            batch=None,
            epoch=self.epoch,
            sequence=work.experiments.next_sequence(self.id),
            proposal=rules.copied(self.spec, copy.parent, checkpoint, number),
        )

    def prune_stopped(self, work: Any) -> None:
        for trial in work.trials.waiting(self.id):
            if trial.rungs and trial.rungs[-1].decision is RungDecision.STOP:
                self.prune(work, trial.id, trial.rungs[-1])

    def forget(self, run_id: str) -> None:
        self.live.pop(run_id, None)

    def end_trials(self) -> None:
        for trial in self.live.values():
            self.world.kill(trial)


def train(
    world: World,
    me: Process,
    driver: Process,
    run_id: str,
    ancestry: rules.Ancestry,
    *,
    begins_at: str | None,
    stop_step: int | None,
) -> Steps:
    """Trains from a checkpoint or from the start, reporting at rungs, to the end or until it is told otherwise."""
    step, state = 0, rules.state_after(ancestry, 0)
    if begins_at is not None:
        step, state, status = world.disk.checkpoints[begins_at]
        if status != "whole":
            return  # It reads the checksums first, and ends; what starts it again goes back further.
        if state != rules.state_after(ancestry, step):
            world.violation("I5", f"run {run_id} went on from another state than an undisturbed one has")
    number = 0

    def save() -> Generator[None, None, str]:
        folder = f"{run_id}/step-{step}"
        if folder in world.disk.checkpoints:
            return folder
        world.disk.checkpoints[folder] = (step, state, "partial")
        yield
        world.disk.checkpoints[folder] = (step, state, "whole")
        yield
        return folder

    def tell(kind: str, rung: int | None = None, checkpoint: str | None = None) -> Generator[None, None, bool]:
        nonlocal number
        number += 1
        while True:
            world.send(driver, Report(me, number, run_id, kind, step, state, rung, checkpoint))
            for _ in range(6):
                yield
                while me.inbox:
                    answered, goes_on = me.inbox.popleft()
                    if answered == number:
                        return goes_on

    if not (yield from tell("started")):
        return
    # What was reported at this very step may not have been recorded; saying it again changes nothing.
    for rung in (index for index, rung_step in enumerate(rules.RUNG_STEPS) if rung_step == step):
        if not (yield from tell("progress", rung)):
            return
    while step < rules.NUM_STEPS and step != stop_step and not me.stop:
        step, state = step + 1, rules.advance(ancestry, state)
        world.disk.spools[run_id].append((step, state))
        yield
        for rung in (index for index, rung_step in enumerate(rules.RUNG_STEPS) if rung_step == step):
            checkpoint = yield from save()
            if not (yield from tell("progress", rung, checkpoint)):
                return
    checkpoint = yield from save()
    yield from tell("finished" if step == rules.NUM_STEPS else "stopped", None, checkpoint)


def _is_ready(trial: Any) -> bool:
    return not trial.rungs or trial.rungs[-1].decision is RungDecision.CONTINUE
