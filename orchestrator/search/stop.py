"""Stop or go on at a rung: pure functions of the rows recorded before the arrival.

Source of ASHA: Li et al. 2020, arXiv:1810.05934. Asynchronous: algorithm 2, as a stopping rule: a trial is decided on
once, as it arrives, against the arrivals before it, and never resumed; its other form, which promotes paused trials, is
in `orchestrator.search.promote`. Synchronous: algorithm 1, successive halving of a batch. Those of the other rules are
with their configs.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence

from orchestrator.schedulers import (
    ASHAScheduler,
    HyperbandScheduler,
    MedianScheduler,
    NoScheduler,
    PatienceScheduler,
    PBTScheduler,
)
from orchestrator.spec import ExperimentSpec
from orchestrator.store.records import Decision, RungDecision, RungRecord, TrialKind

__all__ = [
    "Arrived",
    "Decision",
    "RungDecision",
    "bracket_of",
    "cost_of",
    "decide",
    "decide_among",
    "decide_batch",
]


def decide(
    spec: ExperimentSpec,
    rung: int,
    value: float | None,
    earlier: Sequence[RungRecord],
    *,
    number: int = 0,
    own: Sequence[RungRecord] = (),
) -> Decision:
    """Whether a trial that arrives at `rung` with `value` goes on. A value that is not finite (None) stops.

    ASHA: it does if it is among the best `max(1, floor(n / reduction_factor))` of the `n` search trials that have
    arrived by now, itself included; equal values share the better rank. The first one therefore always goes on.
    Hyperband: likewise among those of its bracket, from the bracket's first rung on. Median: unless its best value so
    far is worse than the median of the others' values here. Patience: unless its last rungs brought nothing better.

    Args:
        earlier: the arrivals at this rung before it.
        number: the trial's number.
        own: the trial's own earlier arrivals.
    """
    return decide_among(spec, rung, value, Arrived(spec, earlier), number=number, own=own)


class Arrived:
    """What the search trials that have arrived at one rung had there, in order, so that many arrivals are cheap.

    Args:
        records: the arrivals so far, in any order; of other trials than the search's nothing is kept.
    """

    def __init__(self, spec: ExperimentSpec, records: Iterable[RungRecord] = ()) -> None:
        self._spec = spec
        self._costs: dict[int, list[float]] = {}
        for record in records:
            if record.trial_kind is TrialKind.SEARCH:
                self._costs.setdefault(self._group(record.trial_number), []).append(cost_of(spec, record.value))
        for costs in self._costs.values():
            costs.sort()

    def add(self, record: RungRecord) -> None:
        """Adds an arrival."""
        if record.trial_kind is TrialKind.SEARCH:
            costs = self._costs.setdefault(self._group(record.trial_number), [])
            insort(costs, cost_of(self._spec, record.value))

    def costs(self, number: int) -> Sequence[float]:
        """What trial `number` is compared with, ascending: with Hyperband those of its bracket, else all."""
        return self._costs.get(self._group(number), [])

    def _group(self, number: int) -> int:
        scheduler = self._spec.scheduler
        return bracket_of(self._spec, scheduler, number) if isinstance(scheduler, HyperbandScheduler) else 0


def decide_among(
    spec: ExperimentSpec,
    rung: int,
    value: float | None,
    arrived: Arrived,
    *,
    number: int = 0,
    own: Sequence[RungRecord] = (),
) -> Decision:
    """As `decide`, of the arrivals before it in order."""
    scheduler = spec.scheduler
    if isinstance(scheduler, NoScheduler):
        return Decision(decision=RungDecision.CONTINUE, explanation="no scheduler: every trial runs to the end")
    assert not isinstance(scheduler, PBTScheduler), "a population is decided on as a whole"
    if value is None or not math.isfinite(value):
        return Decision(
            decision=RungDecision.STOP, explanation=f"{spec.objective.metric} at rung {rung} was not a finite number"
        )
    others = arrived.costs(number)
    if isinstance(scheduler, ASHAScheduler):
        return _among_best(spec, scheduler.reduction_factor, rung, value, others, where="")
    if isinstance(scheduler, HyperbandScheduler):
        bracket = bracket_of(spec, scheduler, number)
        if rung < bracket:
            sentence = f"bracket {bracket} of {scheduler.num_brackets} is first judged at rung {bracket}"
            return Decision(decision=RungDecision.CONTINUE, explanation=sentence)
        return _among_best(spec, scheduler.reduction_factor, rung, value, others, where=f" of bracket {bracket}")
    before = [record for record in own if record.rung < rung]
    costs = [cost_of(spec, record.value) for record in sorted(before, key=lambda record: record.rung)]
    costs.append(cost_of(spec, value))
    if isinstance(scheduler, MedianScheduler):
        return _against_median(spec, scheduler, rung, min(costs), others)
    return _by_patience(spec, scheduler, rung, costs)


def bracket_of(spec: ExperimentSpec, scheduler: HyperbandScheduler, number: int) -> int:
    """The bracket of trial (or point) `number`: they take the brackets in turn."""
    return (number - len(spec.baselines)) % scheduler.num_brackets


def _among_best(
    spec: ExperimentSpec, factor: int, rung: int, value: float, costs: Sequence[float], *, where: str
) -> Decision:
    rank = 1 + bisect_left(costs, cost_of(spec, value))
    num_arrived = len(costs) + 1
    num_kept = max(1, num_arrived // factor)
    goes_on = rank <= num_kept
    sentence = f"rank {rank} of {num_arrived} at rung {rung}{where} with {value:.4f}; the best {num_kept} go on"
    if not goes_on:
        sentence += f", down to {_shown(spec, costs[num_kept - 1])}"
    return Decision(decision=RungDecision.CONTINUE if goes_on else RungDecision.STOP, explanation=sentence)


def _against_median(
    spec: ExperimentSpec, scheduler: MedianScheduler, rung: int, best: float, costs: Sequence[float]
) -> Decision:
    if len(costs) < scheduler.min_trials:
        sentence = f"{len(costs)} other trials at rung {rung}, fewer than min_trials={scheduler.min_trials}"
        return Decision(decision=RungDecision.CONTINUE, explanation=sentence)
    middle = len(costs) // 2
    median = costs[middle] if len(costs) % 2 else (costs[middle - 1] + costs[middle]) / 2
    sentence = (
        f"best {_shown(spec, best)} by rung {rung}; the median of {len(costs)} other trials there is "
        f"{_shown(spec, median)}"
    )
    return Decision(decision=RungDecision.STOP if best > median else RungDecision.CONTINUE, explanation=sentence)


def _by_patience(spec: ExperimentSpec, scheduler: PatienceScheduler, rung: int, costs: Sequence[float]) -> Decision:
    best, since = math.inf, 0
    for cost in costs:
        if cost < best - scheduler.min_delta:
            best, since = cost, 0
        else:
            since += 1
    sentence = f"no better than {_shown(spec, best)} for {since} rungs by rung {rung}; patience={scheduler.patience}"
    stops = since >= scheduler.patience
    return Decision(decision=RungDecision.STOP if stops else RungDecision.CONTINUE, explanation=sentence)


def decide_batch(
    spec: ExperimentSpec, rung: int, arrived: Sequence[RungRecord], num_failed: int | Mapping[int, int] = 0
) -> dict[str, Decision]:
    """Trial id -> decision for a batch that has arrived at `rung` as a whole.

    The best `max(1, floor(n / reduction_factor))` of the `n` trials that were let through the rung before go on. Equal
    values: the lower trial number first. The order of `arrived` plays no part. Hyperband: the same within each bracket,
    from the bracket's first rung on.

    Args:
        num_failed: trials of the batch that failed on the way here; they count as worse than any that arrived. With
            Hyperband: bracket -> how many of it.
    """
    scheduler = spec.scheduler
    if not isinstance(scheduler, HyperbandScheduler):
        failed = num_failed if isinstance(num_failed, int) else sum(num_failed.values())
        factor = scheduler.reduction_factor if isinstance(scheduler, ASHAScheduler) else 1
        return _halved(spec, factor, rung, arrived, failed, where="")
    decisions: dict[str, Decision] = {}
    for bracket in range(scheduler.num_brackets):
        members = [one for one in arrived if bracket_of(spec, scheduler, one.trial_number) == bracket]
        if rung < bracket:
            sentence = f"bracket {bracket} of {scheduler.num_brackets} is first judged at rung {bracket}"
            decisions |= {
                one.trial_id: Decision(
                    decision=RungDecision.STOP if one.value is None else RungDecision.CONTINUE, explanation=sentence
                )
                for one in members
            }
        else:
            failed = num_failed if isinstance(num_failed, int) else num_failed.get(bracket, 0)
            where = f" of bracket {bracket}"
            decisions |= _halved(spec, scheduler.reduction_factor, rung, members, failed, where=where)
    return decisions


def _halved(
    spec: ExperimentSpec, factor: int, rung: int, arrived: Sequence[RungRecord], num_failed: int, *, where: str
) -> dict[str, Decision]:
    ranked = sorted(arrived, key=lambda record: (cost_of(spec, record.value), record.trial_number))
    num_trials = len(arrived) + num_failed
    num_kept = max(1, num_trials // factor)
    decisions: dict[str, Decision] = {}
    for rank, record in enumerate(ranked, start=1):
        goes_on = rank <= num_kept and record.value is not None
        value = "no finite value" if record.value is None else f"{record.value:.4f}"
        place = f"rank {rank} of {num_trials}{where} in its batch at rung {rung}"
        sentence = f"{place} with {value}; the best {num_kept} go on"
        decisions[record.trial_id] = Decision(
            decision=RungDecision.CONTINUE if goes_on else RungDecision.STOP, explanation=sentence
        )
    return decisions


def cost_of(spec: ExperimentSpec, value: float | None) -> float:
    """What is to be small: the value, turned around where it is to be maximised; infinite if there is none."""
    if value is None or not math.isfinite(value):
        return math.inf
    return value if spec.objective.direction == "minimize" else -value


def _shown(spec: ExperimentSpec, cost: float) -> str:
    return f"{cost if spec.objective.direction == 'minimize' else -cost:.4f}"
