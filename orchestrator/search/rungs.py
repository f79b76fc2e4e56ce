"""Where rungs are: from what a scheduler counts (tokens, FLOPs, steps, seconds) to a trial's own training tokens."""

import itertools
import math
from collections.abc import Iterator, Sequence

from orchestrator.schedulers import HalvingSection, IntervalSection, NoScheduler
from orchestrator.spec import ExperimentSpec
from trainer.config import TrainConfig
from trainer.config.start import ForkStartConfig
from trainer.model.size import flops_per_token

MAX_RUNGS = 10_000
"""Of one trial, whatever its configuration: searched batches and budgets may differ a lot from the base's."""
MAX_TIMED_RUNGS = 200
"""Rungs in seconds: how many of them a trial reaches is not known before."""
_MAX_SECONDS = 365 * 86400.0


def rung_tokens(spec: ExperimentSpec, config: TrainConfig | None = None) -> tuple[int, ...]:
    """Training tokens of each rung, ascending; () without a scheduler, and for one that counts seconds.

    Rung `i` is at `reduction_factor**i` times the first, or at `i` intervals behind it. A rung that would fall on the
    trial's last step is left out: there is nothing to save there.

    Args:
        config: the trial's configuration, which says how many tokens so many steps or FLOPs are; by default the base.
    """
    scheduler = spec.scheduler
    if isinstance(scheduler, NoScheduler) or scheduler.resource == "seconds":
        return ()
    config = spec.base if config is None else config
    amounts = (tokens_of(scheduler.resource, amount, config) for amount in _amounts(scheduler))
    below = itertools.takewhile(lambda tokens: config.steps_for_tokens(tokens) < config.num_steps, amounts)
    return tuple(itertools.islice(below, MAX_RUNGS))


def rung_seconds(spec: ExperimentSpec) -> tuple[float, ...]:
    """Seconds of training of each rung, ascending; () unless the scheduler counts seconds."""
    scheduler = spec.scheduler
    if isinstance(scheduler, NoScheduler) or scheduler.resource != "seconds":
        return ()
    below = itertools.takewhile(lambda seconds: seconds < _MAX_SECONDS, _amounts(scheduler))
    return tuple(itertools.islice(below, MAX_TIMED_RUNGS))


def tokens_of(resource: str, amount: float, config: TrainConfig) -> int:
    """Training tokens after which a run under `config` has used so much of a resource; at least one step of it.

    `active_flops` are the forward and backward FLOPs of what a token activates, in closed form
    (`trainer.model.size.flops_per_token`).
    """
    if resource == "tokens":
        return math.ceil(amount)
    if resource == "steps":
        return math.ceil(amount) * config.step_tokens
    return math.ceil(amount / flops_per_token(config.model, seq_len=config.data.seq_len))


def num_rungs_before_start(config: TrainConfig, rungs: Sequence[float]) -> int:
    """How many of a trial's rungs lie at or before the step that it begins with: it goes on from a checkpoint there."""
    if not isinstance(config.start, ForkStartConfig):
        return 0
    return sum(config.steps_for_tokens(math.ceil(tokens)) <= config.start.step for tokens in rungs)


def _amounts(scheduler: HalvingSection | IntervalSection) -> Iterator[float]:
    for index in itertools.count():
        if isinstance(scheduler, HalvingSection):
            yield scheduler.first * scheduler.reduction_factor**index
        else:
            yield scheduler.first + index * scheduler.interval
