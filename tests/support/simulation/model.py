"""The store's protocol in memory: what its transactions promise, without a database, thousands of times as fast.

The methods are those of `orchestrator.store` that drivers, daemons and the API call, with the same rules: states move
by `orchestrator.states`, every write of a driver is fenced, an arrival at a rung is decided once. That it answers as
the store does is tested: the same simulated world over both gives the same trace.

A transaction works on rows that it copies when it changes them, and is applied as a whole or not at all.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from orchestrator.errors import Fenced, IdempotencyKeyReused, IllegalTransition, NotFound
from orchestrator.spec import ExperimentSpec
from orchestrator.states import Cause, ExperimentState, RunState, TrialState, check_transition, is_terminal
from orchestrator.store.clock import LeaseTime
from orchestrator.store.records import Decision, Page, Proposal, RungDecision, Submission, TrialKind
from tests.support.simulation.records import Checkpoint, Event, Experiment, Run, Rung, Trial, copied

T = TypeVar("T")

_LIVE = frozenset({RunState.STARTING, RunState.RUNNING})
_DRIVEN = frozenset({ExperimentState.RUNNING, ExperimentState.PAUSING, ExperimentState.CANCELLING})
_SPECS: dict[int, dict[str, Any]] = {}


class ModelStore:
    """Stands for `orchestrator.store.session.Database`."""

    def __init__(self, lease_time: Callable[[], LeaseTime]) -> None:
        self.lease_time = lease_time
        self.tables: dict[str, dict[str, Any]] = {name: {} for name in ("experiments", "trials", "runs", "checkpoints")}
        self.log: list[Event] = []
        self.last_id = 0

    @contextmanager
    def read(self) -> Iterator["ModelWork"]:
        """A unit of work that only reads."""
        yield ModelWork(self)

    def run(self, change: Callable[["ModelWork"], T]) -> T:
        """Calls `change`; what it wrote is there when it returns, and never was if it raises."""
        work = ModelWork(self)
        result = change(work)
        self.commit(work)
        return result

    def commit(self, work: "ModelWork") -> None:
        """Applies what a unit of work wrote."""
        for name, rows in work.written.items():
            self.tables[name].update(rows)
        self.log += work.said


class ModelWork:
    """Stands for `orchestrator.store.work.Work`; it is its own repositories' shared state."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self.written: dict[str, dict[str, Any]] = {name: {} for name in store.tables}
        self.said: list[Event] = []
        self.experiments = Experiments(self)
        self.control = Control(self)
        self.trials = Trials(self)
        self.runs = Runs(self)
        self.rungs = Rungs(self)
        self.checkpoints = Checkpoints(self)
        self.events = Events(self)

    def rows(self, name: str) -> list[Any]:
        """All rows of a table as this unit of work sees them, in order of creation."""
        written = self.written[name]
        there = self.store.tables[name]
        if not written:
            return list(there.values())
        return [written.get(id, row) for id, row in there.items()] + [
            row for id, row in written.items() if id not in there
        ]

    def find(self, name: str, id: str) -> Any:
        """A row; raises NotFound."""
        row = self.written[name].get(id) or self.store.tables[name].get(id)
        if row is None:
            raise NotFound(f"there is no {name} {id}")
        return row

    def change(self, name: str, id: str, **values: Any) -> Any:
        """Changes a row in this unit of work."""
        rows = self.written[name]
        if id not in rows:
            rows[id] = copied(self.find(name, id))
        row = rows[id]
        for field, value in values.items():
            setattr(row, field, value)
        return row

    def add(self, name: str, id: str, row: Any) -> Any:
        """Adds a row."""
        self.written[name][id] = row
        return row

    def new_id(self, prefix: str) -> str:
        """An id; ids of units of work that came to nothing are not given out again."""
        self.store.last_id += 1
        return f"{prefix}_{self.store.last_id:06d}"

    def say(
        self, kind: str, data: dict[str, Any], *, of: Any, trial_id: str | None = None, run_id: str | None = None
    ) -> None:
        """Appends an event."""
        number = len(self.store.log) + len(self.said) + 1
        self.said.append(Event(number, kind, of, trial_id, run_id, data))

    def move(
        self, name: str, row: Any, following: Any, *, reason: str = "", note: Mapping[str, Any] = {}, **values: Any
    ) -> Any:
        """Changes a state, if it may be, and says so."""
        check_transition(row.state, following)
        word = name[:-1]
        self.say(
            f"{word}.state",
            {"from": row.state.value, "to": following.value, "reason": reason} | dict(note),
            of=row.id if word == "experiment" else row.experiment_id,
            trial_id=row.id if word == "trial" else getattr(row, "trial_id", None),
            run_id=row.id if word == "run" else None,
        )
        return self.change(name, row.id, state=following, reason=reason, **values)


class _Repository:
    def __init__(self, work: ModelWork) -> None:
        self._work = work


class Experiments(_Repository):
    """Stands for `orchestrator.store.experiments.Experiments`."""

    def submit(
        self,
        spec: ExperimentSpec,
        *,
        document: dict[str, Any],
        key: str | None = None,
        fingerprint: str | None = None,
    ) -> Submission:
        there = next((row for row in self._work.rows("experiments") if key is not None and row.key == key), None)
        if there is not None:
            if there.fingerprint != fingerprint:
                raise IdempotencyKeyReused(f"key {key} was used for another request before")
            return Submission(experiment=there, replayed=True)
        # The specs of a simulation are few and live as long as the process does.
        plain = _SPECS.setdefault(id(spec), {**spec.model_dump(mode="json")})
        row = Experiment(self._work.new_id("exp"), plain, key, fingerprint)
        self._work.add("experiments", row.id, row)
        self._work.say("experiment.state", {"from": None, "to": "queued"}, of=row.id)
        return Submission(experiment=row, replayed=False)

    def get(self, experiment_id: str) -> Any:
        return self._work.find("experiments", experiment_id)

    def list(self, *, limit: int = 50, state: ExperimentState | None = None) -> Page[Any]:
        rows = [row for row in self._work.rows("experiments") if state is None or row.state is state]
        return Page(items=tuple(reversed(rows))[:limit], next_cursor=None)

    def claimable(self) -> tuple[str, ...]:
        return tuple(row.id for row in self._work.rows("experiments") if self._is_claimable(row))

    def claim(self, experiment_id: str, *, owner: str, ttl_s: float) -> int | None:
        row = self.get(experiment_id)
        if not self._is_claimable(row):
            return None
        time = self._work.store.lease_time()
        lease = {
            "epoch": row.epoch + 1,
            "lease_owner": owner,
            "lease_until_ms": time.ms + int(ttl_s * 1000),
            "lease_boot_id": time.boot_id,
        }
        if row.state is ExperimentState.QUEUED:
            return self._work.move(
                "experiments", row, ExperimentState.RUNNING, note={"epoch": row.epoch + 1}, **lease
            ).epoch
        self._work.say("experiment.takeover", {"epoch": row.epoch + 1, "owner": owner}, of=row.id)
        return self._work.change("experiments", row.id, **lease).epoch

    def renew(self, experiment_id: str, *, epoch: int, ttl_s: float) -> ExperimentState:
        row = self._fenced(experiment_id, epoch)
        if row.state in _DRIVEN:
            time = self._work.store.lease_time()
            until = time.ms + int(ttl_s * 1000)
            self._work.change("experiments", row.id, lease_until_ms=until, lease_boot_id=time.boot_id)
        return row.state

    def release(self, experiment_id: str, *, epoch: int) -> None:
        self._fenced(experiment_id, epoch)
        self._work.change("experiments", experiment_id, lease_owner=None, lease_until_ms=None, lease_boot_id=None)

    def hold(self, experiment_id: str, epoch: int) -> ExperimentState:
        state = self._fenced(experiment_id, epoch).state
        if is_terminal(state):
            raise Fenced(f"experiment {experiment_id} is {state.value}")
        return state

    def next_sequence(self, experiment_id: str) -> int:
        return self._work.change("experiments", experiment_id, sequence=self.get(experiment_id).sequence + 1).sequence

    def settle(self, experiment_id: str, *, epoch: int, state: ExperimentState, reason: str = "") -> None:
        self.hold(experiment_id, epoch)
        self._end(self.get(experiment_id), state, reason)

    def request_cancel(self, experiment_id: str, *, reason: str = "cancelled by the user") -> Any:
        row = self.get(experiment_id)
        if row.state in (ExperimentState.CANCELLING, ExperimentState.CANCELLED):
            return row
        self._work.say("command.pending", {"kind": "cancel"}, of=experiment_id)
        if row.state in (ExperimentState.QUEUED, ExperimentState.PAUSED):
            self._end(row, ExperimentState.CANCELLED, reason)
        else:
            self._work.move("experiments", row, ExperimentState.CANCELLING, reason=reason)
        return self.get(experiment_id)

    def _is_claimable(self, row: Experiment) -> bool:
        if row.state is ExperimentState.QUEUED:
            return True
        time = self._work.store.lease_time()
        is_live = row.lease_boot_id == time.boot_id and 0 < (row.lease_until_ms or 0) - time.ms <= 120_000
        return row.state in _DRIVEN and not is_live

    def _fenced(self, experiment_id: str, epoch: int) -> Experiment:
        row = self.get(experiment_id)
        if row.epoch != epoch:
            raise Fenced(f"epoch {epoch} of experiment {experiment_id} is over; the current one is {row.epoch}")
        return row

    def _end(self, row: Experiment, following: ExperimentState, reason: str) -> None:
        work = self._work
        open_trials = work.trials.unsettled(row.id)
        if is_terminal(following):
            if open_trials and following is ExperimentState.COMPLETED:
                raise IllegalTransition(f"experiment {row.id} cannot be completed: a trial is open")
            for run in work.runs.live(row.id):
                work.runs.end(run, RunState.CANCELLED, cause=Cause.USER, reason=reason)
            for trial in open_trials:
                work.trials.end(trial, TrialState.CANCELLED, cause=Cause.USER, reason=reason)
        lease = {"lease_owner": None, "lease_until_ms": None, "lease_boot_id": None}
        work.move("experiments", self.get(row.id), following, reason=reason, **lease)
        work.control.answer(row.id, following)

    conclude = _end


class Control(_Repository):
    """Stands for `orchestrator.store.control.Control`."""

    def pause(self, experiment_id: str) -> Any:
        work, row = self._work, self._work.experiments.get(experiment_id)
        if row.state in (ExperimentState.PAUSING, ExperimentState.PAUSED):
            return work.change("experiments", experiment_id, is_to_resume=False)
        if row.state not in (ExperimentState.QUEUED, ExperimentState.RUNNING):
            raise IllegalTransition(f"experiment {experiment_id} is {row.state.value} and cannot be paused")
        work.say("command.pending", {"kind": "pause"}, of=experiment_id)
        if row.state is ExperimentState.QUEUED:
            work.experiments.conclude(row, ExperimentState.PAUSED, "paused")
        else:
            work.move("experiments", row, ExperimentState.PAUSING, reason="paused")
        return work.experiments.get(experiment_id)

    def resume(self, experiment_id: str) -> Any:
        work, row = self._work, self._work.experiments.get(experiment_id)
        if row.state in (ExperimentState.QUEUED, ExperimentState.RUNNING):
            return row
        if row.state not in (ExperimentState.PAUSING, ExperimentState.PAUSED):
            raise IllegalTransition(f"experiment {experiment_id} is {row.state.value} and cannot be resumed")
        work.say("command.pending", {"kind": "resume"}, of=experiment_id)
        work.change("experiments", experiment_id, is_to_resume=True)
        self.answer(experiment_id, row.state)
        return work.experiments.get(experiment_id)

    def answer(self, experiment_id: str, state: ExperimentState) -> None:
        row = self._work.experiments.get(experiment_id)
        if state is ExperimentState.PAUSED and row.is_to_resume:
            self._work.move("experiments", row, ExperimentState.QUEUED, is_to_resume=False)


class Trials(_Repository):
    """Stands for `orchestrator.store.trials.Trials`."""

    def propose(
        self, experiment_id: str, *, epoch: int, choose: Callable[[int, Sequence[Any]], Proposal | None]
    ) -> Any:
        self._work.experiments.hold(experiment_id, epoch)
        history = self.history(experiment_id)
        number = len(history)
        proposal = choose(number, history)
        if proposal is None:
            return None
        spec = self._work.experiments.get(experiment_id).spec
        trial_id = self.insert(
            experiment_id,
            number=number,
            kind=TrialKind.SEARCH,
            label=None,
            batch=number // spec["replicas"] // spec["batch_size"] if spec["synchronous"] else None,
            epoch=epoch,
            sequence=self._work.experiments.next_sequence(experiment_id),
            proposal=proposal,
        )
        return self.get(trial_id)

    def insert(
        self,
        experiment_id: str,
        *,
        number: int,
        kind: TrialKind,
        label: str | None,
        batch: int | None,
        epoch: int,
        sequence: int,
        proposal: Proposal,
    ) -> str:
        trial = Trial(
            self._work.new_id("trl"), experiment_id, number, batch, dict(proposal.params), sequence, epoch, kind
        )
        trial.point, trial.replica = proposal.point, proposal.replica
        if proposal.parent is not None:
            trial.parent_trial_id, trial.parent_checkpoint_id = proposal.parent.trial_id, proposal.parent.id
        self._work.add("trials", trial.id, trial)
        data = {"number": number, "kind": kind.value, "label": label, "params": trial.params}
        self._work.say("trial.proposed", data, of=experiment_id, trial_id=trial.id)
        return trial.id

    def history(self, experiment_id: str) -> tuple[Any, ...]:
        return tuple(row for row in self._work.rows("trials") if row.experiment_id == experiment_id)

    def get(self, trial_id: str) -> Any:
        return self._work.find("trials", trial_id)

    def unsettled(self, experiment_id: str) -> tuple[Any, ...]:
        return tuple(trial for trial in self.history(experiment_id) if trial.finished_at_ms is None)

    def waiting(self, experiment_id: str) -> tuple[Any, ...]:
        live = {run.trial_id for run in self._work.runs.live(experiment_id)}
        return tuple(trial for trial in self.unsettled(experiment_id) if trial.id not in live)

    def settle(
        self,
        trial_id: str,
        *,
        epoch: int,
        state: TrialState,
        cause: Cause | None = None,
        reason: str = "",
        objective: float | None = None,
        objective_tokens: int | None = None,
    ) -> Any:
        trial = self.get(trial_id)
        self._work.experiments.hold(trial.experiment_id, epoch)
        if trial.state is state and is_terminal(state):
            return trial
        if any(run.state in _LIVE for run in self._work.runs.of_trial(trial_id)):
            raise IllegalTransition(f"trial {trial_id} cannot end: it has a live run")
        values = {"epoch": epoch, "objective": objective, "objective_tokens": objective_tokens}
        self.end(trial, state, cause=cause, reason=reason, values=values)
        return self.get(trial_id)

    def lose_runs(
        self,
        experiment_id: str,
        *,
        epoch: int,
        reason: str,
        run_ids: Collection[str] | None = None,
        counts: bool = True,
    ) -> tuple[Any, ...]:
        self._work.experiments.hold(experiment_id, epoch)
        spec = self._work.experiments.get(experiment_id).spec
        lost = [run for run in self._work.runs.live(experiment_id) if run_ids is None or run.id in run_ids]
        for run in lost:
            self._work.runs.end(run, RunState.LOST, cause=Cause.PROCESS_LOST, reason=reason)
            trial = self.get(run.trial_id)
            stopped = [rung for rung in trial.rungs if rung.decision is RungDecision.STOP]
            num_retries = trial.num_retries + int(counts)
            if stopped:
                values = {"epoch": epoch, "objective": stopped[-1].value, "objective_tokens": stopped[-1].tokens}
                cause = Cause(spec["scheduler"]["kind"])
                reason_of_stop = stopped[-1].explanation or ""
                self.end(trial, TrialState.PRUNED, cause=cause, reason=reason_of_stop, values=values)
            elif num_retries > spec["max_retries"]:
                exhausted = f"lost {num_retries} times, max_retries={spec['max_retries']}; the last time: {reason}"
                self.end(
                    trial, TrialState.FAILED, cause=Cause.RETRIES_EXHAUSTED, reason=exhausted, values={"epoch": epoch}
                )
            else:
                self._work.move(
                    "trials",
                    trial,
                    TrialState.RETRYING,
                    reason=reason,
                    epoch=epoch,
                    num_retries=num_retries,
                    cause=Cause.PROCESS_LOST,
                )
        return tuple(self._work.runs.get(run.id) for run in lost)

    def end(
        self, trial: Any, state: TrialState, *, cause: Cause | None, reason: str, values: dict[str, Any] | None = None
    ) -> None:
        sequence = self._work.experiments.next_sequence(trial.experiment_id)
        ended = {"cause": cause, "finished_at_ms": 1, "finished_sequence": sequence} | (values or {})
        self._work.move("trials", trial, state, reason=reason, note={"number": trial.number, "cause": cause}, **ended)


class Runs(_Repository):
    """Stands for `orchestrator.store.runs.Runs`."""

    def start(self, trial_id: str, *, epoch: int, resume_from: Any = None, stop_at_tokens: int | None = None) -> Any:
        trial = self._work.trials.get(trial_id)
        self._work.experiments.hold(trial.experiment_id, epoch)
        before = self.of_trial(trial_id)
        if is_terminal(trial.state) or any(run.state in _LIVE for run in before):
            raise IllegalTransition(f"trial {trial_id} cannot start a run: it has ended or has a live one")
        if trial.state is not TrialState.RUNNING:
            trial = self._work.move("trials", trial, TrialState.RUNNING)
        self._work.change("trials", trial.id, epoch=epoch, cause=None)
        id = self._work.new_id("run")
        step = None if resume_from is None else resume_from.step
        run = Run(
            id, trial_id, trial.experiment_id, trial.number, len(before), epoch, f"runs/{id}", step, stop_at_tokens
        )
        self._work.add("runs", id, run)
        data = {"from": None, "to": "starting", "number": len(before), "resumed_from_step": step}
        self._work.say("run.state", data, of=trial.experiment_id, trial_id=trial_id, run_id=id)
        return run

    def running(self, run_id: str, *, epoch: int) -> Any:
        run = self.hold_live(run_id, epoch)
        if run.state is RunState.STARTING:
            self._work.move("runs", run, RunState.RUNNING)
        return self.get(run_id)

    def settle(self, run_id: str, *, epoch: int, state: RunState, cause: Cause | None = None, reason: str = "") -> Any:
        run = self.get(run_id)
        self._work.experiments.hold(run.experiment_id, epoch)
        if run.state is state and is_terminal(state):
            return run
        self.end(run, state, cause=cause, reason=reason)
        return self.get(run_id)

    def get(self, run_id: str) -> Any:
        return self._work.find("runs", run_id)

    def of_trial(self, trial_id: str) -> tuple[Any, ...]:
        return tuple(run for run in self._work.rows("runs") if run.trial_id == trial_id)

    def of_experiment(self, experiment_id: str) -> tuple[Any, ...]:
        return tuple(run for run in self._work.rows("runs") if run.experiment_id == experiment_id)

    def live(self, experiment_id: str) -> tuple[Any, ...]:
        found = [run for run in self.of_experiment(experiment_id) if run.state in _LIVE]
        return tuple(sorted(found, key=lambda run: run.trial_number))

    def hold_live(self, run_id: str, epoch: int) -> Any:
        run = self.get(run_id)
        self._work.experiments.hold(run.experiment_id, epoch)
        if run.state not in _LIVE or run.epoch != epoch:
            raise Fenced(f"run {run_id} of epoch {run.epoch} is {run.state.value}; it may not report any more")
        return run

    def end(self, run: Any, state: RunState, *, cause: Cause | None, reason: str) -> None:
        self._work.move("runs", run, state, reason=reason, note={"cause": cause}, cause=cause)


class Rungs(_Repository):
    """Stands for `orchestrator.store.rungs.Rungs`."""

    def record(
        self,
        run_id: str,
        *,
        epoch: int,
        rung: int,
        tokens: int,
        value: float | None,
        decide: Callable[[float | None, Sequence[Any]], Decision | None] | None,
    ) -> Any:
        run = self._work.runs.hold_live(run_id, epoch)
        trial = self._work.trials.get(run.trial_id)
        there = next((record for record in trial.rungs if record.rung == rung), None)
        if there is not None:
            return there
        decision = None if decide is None else decide(value, self.at(run.experiment_id, rung))
        record = Rung(
            trial.id,
            trial.number,
            rung,
            run_id,
            tokens,
            value,
            self._work.experiments.next_sequence(run.experiment_id),
            None if decision is None else decision.decision,
            None if decision is None else decision.explanation,
        )
        self._put(trial, record)
        data = {"rung": rung, "tokens": tokens, "value": value}
        self._work.say("rung.arrived", data, of=run.experiment_id, trial_id=trial.id, run_id=run_id)
        if decision is not None:
            self._announce(run.experiment_id, record)
        return record

    def decide(self, trial_id: str, rung: int, decision: Decision, *, epoch: int) -> None:
        trial = self._work.trials.get(trial_id)
        self._work.experiments.hold(trial.experiment_id, epoch)
        there = next((record for record in trial.rungs if record.rung == rung), None)
        if there is None or there.decision is not None:
            return
        record = copied(there)
        record.decision, record.explanation = decision.decision, decision.explanation
        self._put(trial, record)
        self._announce(trial.experiment_id, record)

    def at(self, experiment_id: str, rung: int) -> tuple[Any, ...]:
        records = [
            record
            for trial in self._work.trials.history(experiment_id)
            for record in trial.rungs
            if record.rung == rung
        ]
        return tuple(sorted(records, key=lambda record: record.sequence))

    def _put(self, trial: Any, record: Rung) -> None:
        others = [rung for rung in trial.rungs if rung.rung != record.rung]
        rungs = tuple(sorted([*others, record], key=lambda rung: rung.rung))
        self._work.change("trials", trial.id, rungs=rungs)

    def _announce(self, experiment_id: str, record: Rung) -> None:
        assert record.decision is not None
        data = {"rung": record.rung, "decision": record.decision.value, "explanation": record.explanation}
        self._work.say("rung.decided", data, of=experiment_id, trial_id=record.trial_id)


class Checkpoints(_Repository):
    """Stands for `orchestrator.store.checkpoints.Checkpoints`."""

    def commit(self, run_id: str, *, epoch: int, step: int, tokens: int, folder: str, manifest_sha256: str) -> Any:
        run = self._work.runs.hold_live(run_id, epoch)
        for there in self._work.rows("checkpoints"):
            if (there.run_id, there.step) == (run_id, step):
                return there
        row = Checkpoint(self._work.new_id("chk"), run.trial_id, run_id, step, tokens, folder, manifest_sha256)
        self._work.add("checkpoints", row.id, row)
        data = {"step": step, "tokens": tokens}
        self._work.say("checkpoint.committed", data, of=run.experiment_id, trial_id=run.trial_id, run_id=run_id)
        return row

    def newest(self, trial_id: str) -> Any:
        found = [row for row in self._work.rows("checkpoints") if row.trial_id == trial_id and row.state == "committed"]
        return max(found, key=lambda row: (row.tokens, row.id), default=None)

    def get(self, checkpoint_id: str) -> Any:
        return self._work.find("checkpoints", checkpoint_id)

    def of_trial(self, trial_id: str) -> tuple[Any, ...]:
        found = [row for row in self._work.rows("checkpoints") if row.trial_id == trial_id and row.state == "committed"]
        return tuple(sorted(found, key=lambda row: (row.tokens, row.id)))

    def discard(self, checkpoint_id: str, *, epoch: int) -> None:
        row = self.get(checkpoint_id)
        self._work.experiments.hold(self._work.runs.get(row.run_id).experiment_id, epoch)
        self._work.change("checkpoints", checkpoint_id, state="deleting")


class Events(_Repository):
    """Stands for `orchestrator.store.events.Events`."""

    def after(self, event_id: int, *, limit: int = 500) -> tuple[Event, ...]:
        log = self._work.store.log
        return tuple(log[event_id : event_id + limit])

    def last_id(self) -> int:
        return len(self._work.store.log)
