"""One simulated history: a world is set up, rages, heals, and what is left is held against I1 to I9."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.execution.plan import ServiceState
from orchestrator.spec import ExperimentSpec
from orchestrator.states import ExperimentState, TrialState, is_terminal
from tests.support.history import History, Violation, read_history, violations
from tests.support.simulation import processes, rules
from tests.support.simulation.decided import decided
from tests.support.simulation.model import ModelStore
from tests.support.simulation.world import FAULTS, World

HOSTS = ("a", "b")
_P_WAITING = 0.2
"""Worlds whose trials wait at rungs: for places, for the population, for the other seeds of their point."""


@dataclass(frozen=True)
class Outcome:
    """A history's end.

    Attributes:
        violations: what must not have happened.
        tables: what each experiment came to.
        trace: what happened, in words that do not depend on the store.
    """

    violations: list[Violation]
    tables: list[list[tuple[Any, ...]]]
    trace: list[tuple[Any, ...]]


MakeStore = Callable[[World], Any]


def simulate(seed: int, make_store: MakeStore = lambda world: ModelStore(world.lease_time), **setup: Any) -> Outcome:
    """The history of a seed over a fresh ModelStore, or over what `make_store` gives; `setup` replaces `_Setup`'s."""
    world = World(seed)
    chosen = _Setup.drawn(world, **setup)
    return _judged(world, chosen, _played(world, make_store, chosen))


@dataclass(frozen=True)
class _Setup:
    num_experiments: int
    num_trials: int
    synchronous: bool
    max_retries: int
    num_daemons: int
    wishes: str
    num_steps: int
    kind: str = "stop"
    answer: Callable[..., Any] = processes.api

    def spec(self) -> ExperimentSpec:
        return rules.spec_of(**self.spec_options())

    def spec_options(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "num_trials": self.num_trials,
            "synchronous": self.synchronous,
            "max_retries": self.max_retries,
        }

    @property
    def is_the_same_in_any_order(self) -> bool:
        """Whether the table does not depend on who arrives when."""
        return self.synchronous or self.kind == "population"

    @classmethod
    def drawn(cls, world: World, **given: Any) -> "_Setup":
        rng = world.rng
        synchronous = rng.random() < 0.4
        drawn = {
            "num_experiments": 1 + (rng.random() < 0.2),
            "num_trials": rng.randrange(2, 5),
            "synchronous": synchronous,
            "max_retries": 100 if synchronous else rng.randrange(3),
            "num_daemons": rng.randrange(1, 3),
            "wishes": rng.choice(("", "", "", "", "", "c", "pr", "prpr", "pc")),
            "num_steps": rng.randrange(60, 260),
        }
        if rng.random() < _P_WAITING:
            drawn["kind"] = kind = rng.choice(("promote", "promote", "brackets", "population", "seeds"))
            drawn["synchronous"] = synchronous and kind == "seeds"
            # So that what is decided at rungs is decided while things still break.
            drawn["num_steps"] = rng.randrange(120, 320)
            if kind == "population":
                drawn["max_retries"] = 100
            if kind == "seeds":
                drawn["num_trials"] = 2
        return cls(**drawn | given)


def _played(world: World, make_store: MakeStore, setup: _Setup) -> History:
    """Plays a world to its end and reads what it left."""
    world.store = make_store(world)
    first_event = world.read(lambda work: work.events.last_id())
    document = rules.document_of(**setup.spec_options())
    world.serve = lambda request: world.spawn("api", "a", lambda me: setup.answer(world, me, request)) and None

    def respawn() -> None:
        hosts = {process.host for process in world.alive("daemon")}
        for host in HOSTS[: setup.num_daemons]:
            if host not in hosts:
                world.spawn("daemon", host, lambda me: processes.daemon(world, me))

    world.respawn = respawn
    respawn()
    world.spawn("follower", "-", lambda me: processes.follower(world, me, first_event))
    for index in range(setup.num_experiments):
        # Some clients are impatient, and there are two of them under one key.
        for _ in range(1 + (world.rng.random() < 0.3)):
            request = (f"{world.seed}-{index}", setup.spec(), document)
            wishes = "" if index else setup.wishes
            world.spawn("client", "-", lambda me, r=request, w=wishes: processes.client(world, me, r, wishes=w))
    if setup.kind == "population":
        # Where the checkpoint that a copy begins with is damaged, the copy fails: another table, and rightly so.
        world.faults = tuple(fault for fault in FAULTS if fault != "damage")
    if world.is_faulty:
        world.rage(setup.num_steps)
    world.spawn("caretaker", "-", lambda me: processes.caretaker(world, me))
    converged = world.heal(lambda: _is_over(world))
    if not converged:
        left = [(process.kind, process.host) for process in world.processes]
        world.violation("I8", f"not everything was over in time; processes: {left}")
    return read_history(world.store, after=first_event, accepted=tuple(world.accepted), observed=tuple(world.observed))


def _judged(world: World, setup: _Setup, history: History) -> Outcome:
    spec = setup.spec()
    found = [*world.found, *violations(history)]
    tables = []
    for experiment in history.experiments:
        trials, runs = history.trials[experiment.id], history.runs[experiment.id]
        found += _trained(world, trials, runs)
        found += decided(spec, trials, history.events)
        tables.append(table(trials))
        completed = experiment.state is ExperimentState.COMPLETED
        if (
            completed
            and setup.is_the_same_in_any_order
            and tables[-1] != _undisturbed_table(setup.kind, setup.num_trials, setup.synchronous)
        ):
            found.append(Violation("I7", f"the table is another one than that of an undisturbed sweep: {tables[-1]}"))
    return Outcome(found, tables, world.trace)


def _is_over(world: World) -> bool:
    if world.network or world.alive("client", "api", "driver", "trial", "watch") or world.ray is not ServiceState.READY:
        return False
    with world.store.read() as work:
        states = {record.state for record in work.experiments.list(limit=200).items}
        last_id = work.events.last_id()
    seen = world.observed[-1].id if world.observed else 0
    return all(map(is_terminal, states)) and seen == last_id


def table(trials: Any) -> list[tuple[Any, ...]]:
    """What an experiment came to, without how."""
    return [
        (
            trial.number,
            rules.learning_rate_of(trial),
            trial.state,
            trial.cause,
            trial.objective,
            [(rung.rung, rung.value, rung.decision) for rung in trial.rungs],
        )
        for trial in trials
    ]


@functools.cache
def _undisturbed_table(kind: str, num_trials: int, synchronous: bool) -> list[tuple[Any, ...]]:
    world = World(0, is_faulty=False)
    setup = _Setup(1, num_trials, synchronous, 100, 1, "", 0, kind)
    history = _played(world, lambda world: ModelStore(world.lease_time), setup)
    return table(history.trials[history.experiments[0].id])


def _trained(world: World, trials: Any, runs: Any) -> list[Violation]:
    """I3, I4, I5: every step of a trial once, with its value when nothing breaks; I6: no half checkpoint."""
    found: list[Violation] = []
    for trial in trials:
        ancestry = world.read(lambda work, trial=trial: rules.ancestry(work, trial))
        begin = ancestry[-1][1]
        series: dict[int, int] = {}
        for run in (run for run in runs if run.trial_id == trial.id):
            start = run.resumed_from_step or begin
            series = {step: state for step, state in series.items() if step <= start}
            spool = world.disk.spools.get(run.id, [])
            if [step for step, _ in spool] != list(range(start + 1, start + 1 + len(spool))):
                found.append(Violation("I4", f"run {run.id} has the steps {spool}"))
            series |= dict(spool)
        reached = max([rules.RUNG_STEPS[rung.rung] for rung in trial.rungs], default=0)
        if trial.state is TrialState.COMPLETED:
            reached = rules.NUM_STEPS
        if trial.state in (TrialState.COMPLETED, TrialState.PRUNED):
            missing = set(range(begin + 1, reached + 1)) - series.keys()
            if missing:
                found.append(Violation("I3", f"trial {trial.id} has no steps {sorted(missing)}"))
        for step, state in series.items():
            if state != rules.state_after(ancestry, step):
                found.append(Violation("I5", f"trial {trial.id} at step {step} is not what an undisturbed one is"))
        for rung in trial.rungs:
            if rung.value != rules.value_of(rules.state_after(ancestry, rules.RUNG_STEPS[rung.rung])):
                found.append(Violation("I4", f"trial {trial.id} reported {rung.value} at rung {rung.rung}"))
        with world.store.read() as work:
            newest = work.checkpoints.newest(trial.id)
        if newest is not None and world.disk.checkpoints[newest.folder][2] == "partial":
            found.append(
                Violation("I6", f"checkpoint {newest.folder} of trial {trial.id} was never written as a whole")
            )
    return found
