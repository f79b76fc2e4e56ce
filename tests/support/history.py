"""The history checker: what a system left behind, held against the invariants of docs/reliability.md.

One checker for three sources: simulated histories, the store under a simulated world, and real processes that were
killed. It takes what clients were told, the event log and the rows, and says which invariants they break.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.states import ExperimentState, RunState, TrialState, is_terminal

_LIVE = (RunState.STARTING, RunState.RUNNING)
_FROM_OUTSIDE = (RunState.LOST, RunState.CANCELLED)
"""Ends that the driver of a later epoch gives to a run of an earlier one."""


class Violation(NamedTuple):
    """A broken invariant, `I1` to `I9`, and how."""

    invariant: str
    what: str


class Accepted(NamedTuple):
    """A submission that a client was told of: the Idempotency-Key, and the experiment that answered it."""

    key: str
    experiment_id: str


@dataclass(kw_only=True)
class History:
    """What is held against the invariants.

    Attributes:
        accepted: every acknowledgement that clients got, repetitions included.
        experiments: records of all experiments.
        keys: the Idempotency-Key of each experiment that has one, by experiment.
        trials: by experiment, in order of number.
        runs: by experiment.
        events: the whole log, in order.
        observed: the events that somebody who follows the log was given meanwhile.
        healed: faults have stopped and the system was left alone since, so everything has to be over.
    """

    accepted: Sequence[Accepted] = ()
    experiments: Sequence[Any] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    trials: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    runs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    events: Sequence[Any] = ()
    observed: Sequence[Any] = ()
    healed: bool = True


def read_history(database: Any, *, after: int = 0, **fields: Any) -> History:
    """The history of all experiments submitted after event `after`, as the store tells it; `fields` are History's."""
    with database.read() as work:
        events = tuple(_events(work, after))
        ids = [event.experiment_id for event in events if event.kind == "experiment.state" and not event.data["from"]]
        experiments = [work.experiments.get(experiment_id) for experiment_id in ids]
        return History(
            experiments=experiments,
            trials={record.id: work.trials.history(record.id) for record in experiments},
            runs={record.id: work.runs.of_experiment(record.id) for record in experiments},
            events=events,
            **fields,
        )


def violations(history: History) -> list[Violation]:
    """Every invariant that the history breaks; [] for a good one."""
    found = [*_accepts(history), *_keys(history), *_ends(history), *_decisions(history), *_observations(history)]
    for experiment in history.experiments:
        found += _epochs(experiment, history)
    if history.healed:
        found += _convergence(history)
    return found


def _events(work: Any, after: int) -> Iterator[Any]:
    while page := work.events.after(after, limit=1000):
        yield from page
        after = page[-1].id


def _accepts(history: History) -> Iterator[Violation]:
    there = {experiment.id for experiment in history.experiments}
    for accepted in history.accepted:
        if accepted.experiment_id not in there:
            yield Violation("I1", f"{accepted.experiment_id} was accepted under {accepted.key} and is not there")


def _keys(history: History) -> Iterator[Violation]:
    answers: dict[str, set[str]] = defaultdict(set)
    for accepted in history.accepted:
        answers[accepted.key].add(accepted.experiment_id)
    for experiment_id, key in history.keys.items():
        answers[key].add(experiment_id)
    for key, ids in answers.items():
        if len(ids) > 1:
            yield Violation("I9", f"key {key} stands for {len(ids)} experiments: {sorted(ids)}")


def _ends(history: History) -> Iterator[Violation]:
    """I7: one terminal event each, nothing after it, and the row says the same. I2: an ended trial is not run again."""
    ended: dict[str, str] = {}
    last: dict[str, str] = {}
    for event in history.events:
        word, _, rest = event.kind.partition(".")
        if rest != "state":
            continue
        entity = {"experiment": event.experiment_id, "trial": event.trial_id, "run": event.run_id}[word]
        following = {"experiment": ExperimentState, "trial": TrialState, "run": RunState}[word](event.data["to"])
        if word == "experiment" and following is ExperimentState.QUEUED:
            ended.pop(entity, None)  # extended by its owner, or resumed
        if entity in ended:
            yield Violation("I7", f"{word} {entity} had ended as {ended[entity]} and became {following.value}")
        if word == "run" and event.data["from"] is None and event.trial_id in ended:
            yield Violation("I2", f"trial {event.trial_id} had ended as {ended[event.trial_id]} and was run again")
        last[entity] = following.value
        if is_terminal(following):
            ended[entity] = following.value
    rows = [*history.experiments, *_each(history.trials), *_each(history.runs)]
    for row in rows:
        if row.id in last and last[row.id] != row.state.value:
            yield Violation("I7", f"{row.id} is {row.state.value}, its last event says {last[row.id]}")


def _decisions(history: History) -> Iterator[Violation]:
    """I7: a proposal and a decision are taken once, and what was recorded of them is what is there."""
    for kind in ("rung.arrived", "rung.decided"):
        counts = Counter((event.trial_id, event.data["rung"]) for event in history.events if event.kind == kind)
        for (trial_id, rung), count in counts.items():
            if count > 1:
                yield Violation("I7", f"{kind} of trial {trial_id}, rung {rung}, {count} times")
    trials = {trial.id: trial for trial in _each(history.trials)}
    proposed = Counter(event.trial_id for event in history.events if event.kind == "trial.proposed")
    for trial_id in proposed.keys() | trials.keys():
        if proposed[trial_id] != 1 or trial_id not in trials:
            yield Violation(
                "I7", f"trial {trial_id} was proposed {proposed[trial_id]} times, row: {trial_id in trials}"
            )
    for event in history.events:
        trial = trials.get(event.trial_id)
        if trial is None:
            continue
        if event.kind == "trial.proposed" and event.data["params"] != trial.params:
            yield Violation("I7", f"trial {trial.id} was proposed at {event.data['params']} and is at {trial.params}")
        if event.kind == "rung.decided":
            said = [rung.decision for rung in trial.rungs if rung.rung == event.data["rung"]]
            if said != [event.data["decision"]]:
                yield Violation("I7", f"trial {trial.id}: {event.data['decision']} was decided, the row says {said}")
    for experiment_id, of_experiment in history.trials.items():
        numbers = [trial.number for trial in of_experiment]
        if numbers != list(range(len(numbers))):
            yield Violation("I7", f"trials of {experiment_id} have the numbers {numbers}")


def _observations(history: History) -> Iterator[Violation]:
    """I3: what a follower of the log was given stays in it, as it was and in the same order."""
    there = {event.id: event for event in history.events}
    ids = [event.id for event in history.observed]
    if ids != sorted(set(ids)):
        yield Violation("I3", "a follower of the log was given events twice or in another order")
    for event in history.observed:
        if there.get(event.id) != event:
            yield Violation("I3", f"a follower was given event {event.id} ({event.kind}), which is not there any more")
    if history.observed and history.healed and len(ids) != len(there):
        yield Violation("I3", f"a follower of the log was given {len(ids)} of {len(there)} events")


def _epochs(experiment: Any, history: History) -> Iterator[Violation]:
    """I2: one live run per trial at any time, and nothing but its end is written of a run whose epoch is over."""
    runs = {run.id: run for run in history.runs[experiment.id]}
    current = 0
    live: dict[str, str] = {}
    for event in history.events:
        if event.experiment_id != experiment.id:
            continue
        if event.kind in ("experiment.takeover", "experiment.state") and "epoch" in event.data:
            if event.data["epoch"] <= current:
                yield Violation("I2", f"{experiment.id}: epoch {event.data['epoch']} came after {current}")
            current = event.data["epoch"]
        if event.run_id is None or event.run_id not in runs:
            continue
        epoch = runs[event.run_id].epoch
        if event.kind != "run.state":
            if epoch != current and event.kind in ("rung.arrived", "checkpoint.committed", "evaluation"):
                yield Violation("I2", f"{event.kind} of run {event.run_id}, epoch {epoch}, under epoch {current}")
            continue
        following = RunState(event.data["to"])
        if epoch != current and following not in _FROM_OUTSIDE:
            yield Violation("I2", f"run {event.run_id} of epoch {epoch} became {following.value} under epoch {current}")
        if following in _LIVE:
            other = live.setdefault(event.trial_id, event.run_id)
            if other != event.run_id:
                yield Violation("I2", f"runs {other} and {event.run_id} of trial {event.trial_id} are live at once")
        elif live.get(event.trial_id) == event.run_id:
            del live[event.trial_id]


def _convergence(history: History) -> Iterator[Violation]:
    for experiment in history.experiments:
        if not is_terminal(experiment.state):
            yield Violation("I8", f"{experiment.id} is still {experiment.state.value}: {experiment.reason}")
        if experiment.lease_until_ms is not None:
            yield Violation("I8", f"{experiment.id} is over and its lease is not")
    for row in (*_each(history.trials), *_each(history.runs)):
        if not is_terminal(row.state):
            yield Violation("I8", f"{row.id} is still {row.state.value}")


def _each(by_experiment: Mapping[str, Sequence[Any]]) -> Iterator[Any]:
    for rows in by_experiment.values():
        yield from rows
