"""What simulated trials are and how they are chosen and judged: small pure functions, so that all of it can be redone.

A trial computes a chain of numbers, each from the one before, as training computes weights. It has three steps and two
rungs. A proposal is a hash of what was known when it was asked for: one that knew anything else is another number.

An experiment is of one of the kinds KINDS. What becomes of trials that wait at rungs is decided by the functions of
`orchestrator.search` themselves, but for batches, which have a simpler rule of their own here.
"""

import functools
import statistics
import zlib
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from orchestrator.schedulers import HyperbandScheduler
from orchestrator.search.points import as_trials, points_of
from orchestrator.search.population import Generation, generation
from orchestrator.search.space import resolve
from orchestrator.search.stop import bracket_of
from orchestrator.search.waiting import Verdict
from orchestrator.search.waiting import due as due_points
from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import Decision, Proposal, RungDecision
from tests.support.specs import experiment_document, experiment_spec
from trainer.config import TrainConfig

NUM_STEPS = 3
RUNG_STEPS = (1, 2)
STEP_TOKENS = 100
_PARAM = "optimizer.lr"
_MODULUS = 2**31


_ASHA: dict[str, Any] = {"kind": "asha", "min_tokens": 4096, "reduction_factor": 2}
_POPULATION = {"kind": "pbt", "min_tokens": 4096, "interval_tokens": 4096, "quantile": 0.5}
KINDS: dict[str, dict[str, Any]] = {
    "stop": {"scheduler": _ASHA},
    "promote": {"scheduler": _ASHA | {"mode": "promote"}},
    "brackets": {"scheduler": _ASHA | {"kind": "hyperband", "mode": "promote", "num_brackets": 2}},
    "population": {"scheduler": _POPULATION},
    "seeds": {"scheduler": _ASHA, "replicas": 2},
}
"""Decided on arrival or by batches; promoted to free places, in brackets, too; copied from the best; by points."""


@functools.cache
def spec_of(*, kind: str, num_trials: int, synchronous: bool, max_retries: int) -> ExperimentSpec:
    """An experiment of the simulation."""
    return experiment_spec(**_fields(kind, num_trials, synchronous, max_retries))


@functools.cache
def document_of(*, kind: str, num_trials: int, synchronous: bool, max_retries: int) -> dict[str, Any]:
    """What its client sends."""
    return experiment_document(**_fields(kind, num_trials, synchronous, max_retries))


def _fields(kind: str, num_trials: int, synchronous: bool, max_retries: int) -> dict[str, Any]:
    rest = {"num_trials": num_trials, "synchronous": synchronous, "batch_size": 2, "max_retries": max_retries}
    return rest | KINDS[kind]


Ancestry = tuple[tuple[str, int], ...]
"""What a trial's chain of numbers follows from: a word and the step where that begins, of the trial that it goes on
from, and so on, and of its own."""


def ancestry(work: Any, trial: Any) -> Ancestry:
    """A trial's."""
    word = repr(learning_rate_of(trial)) + (f" {trial.replica}" if trial.replica else "")
    if trial.parent_trial_id is None:
        return ((word, 0),)
    begin = work.checkpoints.get(trial.parent_checkpoint_id).step
    return (*ancestry(work, work.trials.get(trial.parent_trial_id)), (word, begin))


@functools.cache
def state_after(ancestry: Ancestry, step: int) -> int:
    """The state of an undisturbed trial after `step` steps."""
    word, begin = ancestry[-1]
    if step > begin:
        return advance(ancestry, state_after(ancestry, step - 1))
    return state_after(ancestry[:-1], step) if len(ancestry) > 1 else zlib.crc32(word.encode())


def advance(ancestry: Ancestry, state: int) -> int:
    """The next state of a trial: what one step does to it. A copy goes another way than its parent."""
    own = zlib.crc32(ancestry[-1][0].encode()) if len(ancestry) > 1 else 0
    return (state * 1_103_515_245 + 12_345 + own) % _MODULUS


def value_of(state: int) -> float:
    """The objective in a state."""
    return state / _MODULUS


def next_of(spec: ExperimentSpec, history: Sequence[Any]) -> Proposal | None:
    """The next trial: the next seed of the last point, the first of a new one, or None if there are no more."""
    if spec.replicas == 1:
        return propose(spec, len(history), history)
    points = points_of(spec, history)
    if points and len(points[-1].replicas) < spec.replicas:
        first, replica = points[-1].replicas[0], len(points[-1].replicas)
        config = _config(spec.num_trials, learning_rate_of(first))
        return Proposal(params=dict(first.params), config=config, point=points[-1].record.number, replica=replica)
    proposal = propose(spec, len(points), as_trials(spec, history))
    if proposal is None:
        return None
    return Proposal(params=proposal.params, config=proposal.config, point=len(points), replica=0)


def propose(spec: ExperimentSpec, number: int, history: Sequence[Any], *, before: int | None = None) -> Proposal | None:
    """Trial `number` of `spec` when `history` was there, or None if there are no more.

    Args:
        before: sees the rows as they were when the experiment's sequence had this number; None: as they are.
    """
    if number >= (spec.num_trials or 0):
        return None
    visible = number - number % spec.batch_size if spec.synchronous else number
    if spec.synchronous and any(trial.finished_at_ms is None for trial in history[:visible]):
        return None
    known = [
        (trial.number, trial.params[_PARAM], trial.objective)
        if before is None or (trial.finished_sequence or before) < before
        else (trial.number, trial.params[_PARAM], None)
        for trial in history[:visible]
    ]
    learning_rate = (1 + zlib.crc32(repr((number, known)).encode()) % 16) / 2000
    return Proposal(params={_PARAM: learning_rate}, config=_config(spec.num_trials, learning_rate))


@functools.cache
def _config(num_trials: int, learning_rate: float) -> TrainConfig:
    spec = spec_of(kind="stop", num_trials=num_trials, synchronous=False, max_retries=1)
    return resolve(spec, {_PARAM: learning_rate})


def copied(spec: ExperimentSpec, parent: Any, checkpoint: Any, number: int) -> Proposal:
    """Trial `number`, which goes on from a checkpoint of `parent`."""
    known = (learning_rate_of(parent), checkpoint.step, number)
    learning_rate = (1 + zlib.crc32(repr(known).encode()) % 16) / 2000
    return Proposal(params={_PARAM: learning_rate}, config=_config(spec.num_trials, learning_rate), parent=checkpoint)


def next_stop(spec: ExperimentSpec, trial: Any, *, begin: int) -> int | None:
    """The step at which a trial's next run ends to wait for a decision, None if it runs on.

    Args:
        begin: the step of the checkpoint that the trial began with.
    """
    if not spec.synchronous and not _waits(spec):
        return None
    passed = trial.rungs[-1].rung + 1 if trial.rungs else 0
    passed = max([passed, *(rung + 1 for rung, step in enumerate(RUNG_STEPS) if step <= begin)])
    if isinstance(spec.scheduler, HyperbandScheduler):
        passed = max(passed, bracket_of(spec, spec.scheduler, trial.number))
    return RUNG_STEPS[passed] if passed < len(RUNG_STEPS) else None


def on_arrival(
    spec: ExperimentSpec, trial: Any, rung: int, *, begin: int
) -> Callable[[float | None, Sequence[Any]], Decision | None] | None:
    """What decides on a trial as it arrives at a rung; None if it is to wait."""
    if isinstance(spec.scheduler, HyperbandScheduler) and rung < bracket_of(spec, spec.scheduler, trial.number):
        return lambda value, earlier: Decision(decision=RungDecision.CONTINUE, explanation="not judged in its bracket")
    if RUNG_STEPS[rung] <= begin:
        return lambda value, earlier: Decision(decision=RungDecision.CONTINUE, explanation="reached by its parent")
    return None if spec.synchronous or _waits(spec) else decide


def settled(spec: ExperimentSpec, history: Sequence[Any], live: AbstractSet[str]) -> Generation:
    """What the rows settle of the trials that wait for each other, and who is copied.

    Args:
        live: ids of the trials that have a run.
    """
    if spec.replicas > 1:
        return Generation(due_points(spec, history), [])
    if spec.synchronous:
        return Generation([Verdict(*verdict) for verdict in due(history)], [])
    found = generation(spec, history)
    return found if live.isdisjoint(verdict.trial_id for verdict in found.verdicts) else Generation([], [])


def _waits(spec: ExperimentSpec) -> bool:
    return spec.replicas > 1 or spec.scheduler.kind == "pbt" or getattr(spec.scheduler, "mode", "stop") == "promote"


def decide(value: float | None, earlier: Sequence[Any]) -> Decision:
    """Stops what is worse than the median of the arrivals before it."""
    cut = statistics.median(record.value for record in earlier) if earlier else None
    assert value is not None
    decision = RungDecision.CONTINUE if cut is None or value <= cut else RungDecision.STOP
    return Decision(decision=decision, explanation=f"{value} against {cut} of {len(earlier)}")


def due(history: Sequence[Any]) -> list[tuple[str, int, Decision]]:
    """Trial, rung and decision of every batch that has wholly arrived at a rung: its worse half stops."""
    found: list[tuple[str, int, Decision]] = []
    open_rungs = {(trial.batch, rung.rung) for trial in history for rung in trial.rungs if rung.decision is None}
    for batch, rung in sorted(open_rungs):
        trials = [trial for trial in history if trial.batch == batch]
        arrived = [record for trial in trials for record in trial.rungs if record.rung == rung]
        there = {record.trial_id for record in arrived}
        if any(trial.finished_at_ms is None and trial.id not in there for trial in trials):
            continue
        for rank, record in enumerate(sorted(arrived, key=lambda record: (record.value, record.trial_number))):
            decision = RungDecision.CONTINUE if rank < (len(arrived) + 1) // 2 else RungDecision.STOP
            explanation = f"rank {rank} of {len(arrived)}"
            found.append((record.trial_id, rung, Decision(decision=decision, explanation=explanation)))
    return found


def learning_rate_of(trial: Any) -> float:
    """The parameter of a trial."""
    return trial.params[_PARAM]
