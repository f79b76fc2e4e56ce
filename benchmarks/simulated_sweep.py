"""Sweeps on a simulated clock: workers train steps of learning curves, and a side says what runs and what is stopped.

Both sides see the same clock, the same curves and the same noise. Ours are the pure functions that the conductor asks;
Tune's are its own `OptunaSearch` and `AsyncHyperBandScheduler`, called in the order in which its controller does.
"""

import heapq
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import optuna

from benchmarks.landscapes import BUDGET_STEPS, Curve, LandscapePoint, measured, step_duration_s
from benchmarks.small_model import SMALL_MODEL
from orchestrator.search.promote import promoted
from orchestrator.search.propose import propose
from orchestrator.search.rungs import rung_tokens
from orchestrator.search.told import Memory
from orchestrator.search.waiting import on_arrival
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import Proposal, RungDecision, RungRecord, TrialKind, TrialRecord

RATE, WIDTH, WEIGHT = "optimizer.lr", "optimizer.weight_decay", "model.moe.balancing.0.coefficient"
_BATCH = {"global_batch_size": 16, "micro_batch_size": 16}
_SEQ_LEN = 64


class Side(Protocol):
    """Who decides."""

    def start(self) -> tuple[str, LandscapePoint, int] | None:
        """What a free worker does: trial id, its point, steps that it has trained before; None if there is nothing."""
        ...

    def report(self, trial_id: str, step: int, value: float) -> bool:
        """Takes an evaluation and returns whether the trial trains on."""
        ...


@dataclass
class SimulatedTrial:
    """What became of a trial: its point, the steps it trained, its newest evaluation."""

    point: LandscapePoint
    num_steps: int = 0
    value: float = float("inf")


def simulate(side: Side, curve: Curve, *, seed: int, num_workers: int, num_steps: int) -> dict[str, SimulatedTrial]:
    """Trains until `num_steps` steps are spent over all trials, and returns what became of each.

    Args:
        seed: of the noise, and of how long a step takes.
    """
    trials: dict[str, SimulatedTrial] = {}
    order = itertools.count()
    clock = 0.0
    busy: list[tuple[float, int, str]] = []
    spent = 0
    while spent < num_steps:
        while len(busy) < num_workers and (started := side.start()) is not None:
            trial_id, point, done = started
            trial = trials.setdefault(trial_id, SimulatedTrial(point))
            assert trial.num_steps == done, "a trial goes on where it was"
            heapq.heappush(busy, (clock + step_duration_s(point, seed=seed), next(order), trial_id))
        if not busy:
            break
        clock, _, trial_id = heapq.heappop(busy)
        trial = trials[trial_id]
        trial.num_steps += 1
        trial.value = measured(curve, trial.point, trial.num_steps, seed=seed)
        spent += 1
        if side.report(trial_id, trial.num_steps, trial.value):
            heapq.heappush(busy, (clock + step_duration_s(trial.point, seed=seed), next(order), trial_id))
    return trials


class Ours:
    """The search of an experiment whose rows are kept in memory.

    Args:
        fields: of the spec: sampler, scheduler and so on.
    """

    def __init__(self, seed: int, **fields: Any) -> None:
        self.spec = ExperimentSpec.model_validate(document(seed) | fields)
        step_tokens = self.spec.base.step_tokens
        self._rung_at = {tokens // step_tokens: rung for rung, tokens in enumerate(rung_tokens(self.spec))}
        self.history: list[TrialRecord] = []
        self._live: set[str] = set()
        self._memory = Memory()
        self._sequence = itertools.count(1)

    def start(self) -> tuple[str, LandscapePoint, int] | None:
        for verdict in promoted(self.spec, self.history, live=self._live):
            trial = self.history[_number(verdict.trial_id)]
            rungs = (*trial.rungs[:-1], replace(trial.rungs[-1], decision=verdict.decision.decision))
            self.history[trial.number] = replace(trial, rungs=rungs)
            self._live.add(trial.id)
            return trial.id, point_of(trial.params), rungs[-1].tokens // self.spec.base.step_tokens
        number = len(self.history)
        proposal = propose(self.spec, number=number, history=self.history, memory=self._memory)
        if proposal is None:
            return None
        trial = self.proposed(number, proposal)
        self.history.append(trial)
        self._live.add(trial.id)
        return trial.id, point_of(trial.params), 0

    def report(self, trial_id: str, step: int, value: float) -> bool:
        trial = self.history[_number(trial_id)]
        tokens = step * self.spec.base.step_tokens
        if step == BUDGET_STEPS:
            self._end(trial, TrialState.COMPLETED, objective=value, objective_tokens=tokens)
            return False
        rung = self._rung_at.get(step)
        if rung is None:
            return True
        earlier = sorted(
            (record for other in self.history for record in other.rungs if record.rung == rung),
            key=lambda record: record.sequence,
        )
        decision = on_arrival(self.spec, trial, rung, value, earlier)
        record = RungRecord(
            trial_id=trial_id,
            trial_number=trial.number,
            trial_kind=trial.kind,
            batch=None,
            rung=rung,
            run_id=f"run_{trial.number}",
            tokens=tokens,
            value=value,
            sequence=next(self._sequence),
            decision=None if decision is None else decision.decision,
            explanation="" if decision is None else decision.explanation,
            at_ms=0,
        )
        arrived = replace(trial, rungs=(*trial.rungs, record))
        self.history[trial.number] = arrived
        if decision is None:
            self._live.discard(trial_id)
            return False
        if decision.decision is RungDecision.STOP:
            self._end(arrived, TrialState.PRUNED)
            return False
        return True

    def proposed(self, number: int, proposal: Proposal) -> TrialRecord:
        """The row of a trial that was just asked."""
        assert proposal.config is not None, proposal.problem
        return TrialRecord(
            id=f"trl_{number}",
            experiment_id="exp_0",
            number=number,
            kind=TrialKind.SEARCH,
            label=None,
            batch=None,
            state=TrialState.RUNNING,
            cause=None,
            reason="",
            since_ms=0,
            epoch=1,
            params=proposal.params,
            config=proposal.config.model_dump(mode="json"),
            config_fingerprint=None,
            asked_sequence=next(self._sequence),
            finished_sequence=None,
            objective=None,
            objective_tokens=None,
            summary=None,
            num_retries=0,
            created_at_ms=0,
            started_at_ms=0,
            finished_at_ms=None,
        )

    def completed(self, number: int, proposal: Proposal, value: float) -> TrialRecord:
        """The row of a trial that came to `value`."""
        asked = self.proposed(number, proposal)
        ended = {"state": TrialState.COMPLETED, "finished_at_ms": 1, "finished_sequence": next(self._sequence)}
        return replace(asked, objective=value, **ended)

    def _end(self, trial: TrialRecord, state: TrialState, **values: Any) -> None:
        self._live.discard(trial.id)
        ended = {"state": state, "finished_at_ms": 1, "finished_sequence": next(self._sequence)}
        self.history[trial.number] = replace(trial, **ended, **values)


class Tunes:
    """Ray Tune's searcher and scheduler, told what `TuneController._process_trial_result` tells them.

    Args:
        sampler: of Optuna; None leaves the one that `OptunaSearch` makes.
        brackets: of the scheduler.
    """

    def __init__(self, seed: int, *, sampler: optuna.samplers.BaseSampler | None = None, brackets: int = 1) -> None:
        import numpy as np
        from ray.tune.experiment import Trial
        from ray.tune.schedulers import AsyncHyperBandScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        np.random.seed(seed)  # the scheduler draws brackets from it
        given: dict[str, Any] = {"seed": seed} if sampler is None else {"sampler": sampler}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.searcher = OptunaSearch(distributions(), metric="loss", mode="min", **given)
        self.scheduler = AsyncHyperBandScheduler(
            metric="loss", mode="min", max_t=BUDGET_STEPS, grace_period=1, reduction_factor=3, brackets=brackets
        )
        self._trial = Trial
        self._trials: list[Trial] = []

    def start(self) -> tuple[str, LandscapePoint, int] | None:
        trial = self._trial("simulated", trial_id=f"trl_{len(self._trials)}", stub=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            params = self.searcher.suggest(trial.trial_id)
        assert params is not None, "the searcher has no end"
        self.scheduler.on_trial_add(None, trial)  # pyright: ignore[reportArgumentType]  # it does not look at it
        self._trials.append(trial)
        return trial.trial_id, point_of(params), 0

    def report(self, trial_id: str, step: int, value: float) -> bool:
        result = {"loss": value, "training_iteration": step}
        trial = self._trials[_number(trial_id)]
        if self.scheduler.on_trial_result(None, trial, result) == "STOP":  # pyright: ignore[reportArgumentType]
            self.searcher.on_trial_complete(trial_id, result)
            return False
        self.searcher.on_trial_result(trial_id, result)
        return True


def document(seed: int) -> dict[str, Any]:
    """A spec over the landscapes' points, without sampler and scheduler."""
    balancing = [{"kind": "load_balancing_loss", "coefficient": 0.01}]
    return {
        "name": "landscape",
        "base": {
            "model": SMALL_MODEL | {"moe": SMALL_MODEL["moe"] | {"balancing": balancing}},
            "data": {"tokenizer": "bpe-1024", "seq_len": _SEQ_LEN},
            "optimizer": {"lr": 1e-3},
            "loop": {"budget_tokens": BUDGET_STEPS * _BATCH["global_batch_size"] * _SEQ_LEN, **_BATCH},
        },
        "space": {
            RATE: {"float": [1e-4, 1e-2], "log": True},
            WIDTH: {"float": [0.0, 1.0]},
            WEIGHT: {"float": [0.0, 1.0]},
        },
        "objective": {"metric": "eval/loss"},
        "num_trials": 100_000,
        "seed": seed,
    }


def distributions() -> dict[str, optuna.distributions.BaseDistribution]:
    """The same space for Optuna."""
    return {
        RATE: optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        WIDTH: optuna.distributions.FloatDistribution(0.0, 1.0),
        WEIGHT: optuna.distributions.FloatDistribution(0.0, 1.0),
    }


def point_of(params: Mapping[str, Any]) -> LandscapePoint:
    """Where a configuration lies on a landscape."""
    return LandscapePoint(math.log10(params[RATE] / 1e-4) / 2, params[WIDTH], params[WEIGHT])


def _number(trial_id: str) -> int:
    return int(trial_id.rpartition("_")[2])


def chosen(trials: Sequence[SimulatedTrial], *, whole_only: bool) -> SimulatedTrial | None:
    """The trial with the lowest newest evaluation, of those that trained their whole budget or of all."""
    among = [trial for trial in trials if not whole_only or trial.num_steps == BUDGET_STEPS]
    return min(among, key=lambda trial: trial.value, default=None)
