"""What simulated trials are and how they are chosen and judged: small pure functions, so that all of it can be redone.

A trial computes a chain of numbers, each from the one before, as training computes weights. It has three steps and two
rungs. A proposal is a hash of what was known when it was asked for: one that knew anything else is another number.
"""

import functools
import statistics
import zlib
from collections.abc import Sequence
from typing import Any

from orchestrator.search.space import resolve
from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import Decision, Proposal, RungDecision
from tests.support.specs import experiment_document, experiment_spec
from trainer.config import TrainConfig

NUM_STEPS = 3
RUNG_STEPS = (1, 2)
STEP_TOKENS = 100
_PARAM = "optimizer.lr"
_MODULUS = 2**31


@functools.cache
def spec_of(*, num_trials: int, synchronous: bool, max_retries: int) -> ExperimentSpec:
    """An experiment of the simulation."""
    return experiment_spec(**_fields(num_trials, synchronous, max_retries))


@functools.cache
def document_of(*, num_trials: int, synchronous: bool, max_retries: int) -> dict[str, Any]:
    """What its client sends."""
    return experiment_document(**_fields(num_trials, synchronous, max_retries))


def _fields(num_trials: int, synchronous: bool, max_retries: int) -> dict[str, Any]:
    scheduler = {"kind": "asha", "min_tokens": 4096, "reduction_factor": 2}
    return {
        "num_trials": num_trials,
        "synchronous": synchronous,
        "batch_size": 2,
        "max_retries": max_retries,
        "scheduler": scheduler,
    }


def advance(state: int) -> int:
    """The next state of a trial: what one step does to it."""
    return (state * 1_103_515_245 + 12_345) % _MODULUS


@functools.cache
def state_after(learning_rate: float, step: int) -> int:
    """The state of an undisturbed trial after `step` steps."""
    return zlib.crc32(repr(learning_rate).encode()) if step == 0 else advance(state_after(learning_rate, step - 1))


def value_of(state: int) -> float:
    """The objective in a state."""
    return state / _MODULUS


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
    return resolve(spec_of(num_trials=num_trials, synchronous=False, max_retries=1), {_PARAM: learning_rate})


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
