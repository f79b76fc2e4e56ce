"""Milestones: at which steps a run evaluates, writes a checkpoint, reports a rung or ends.

A pure function of the config and the step, but for rungs in seconds, which lie where the clock says.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import TrainConfig


@dataclass(frozen=True)
class Milestone:
    """What happens after a step.

    Attributes:
        evaluate, checkpoint: whether to.
        rungs: indices into the rungs that are reached at this step; close rungs may share a step.
        stop: the run ends here before its budget, at a rung.
        end: the budget is trained.
    """

    evaluate: bool
    checkpoint: bool
    rungs: tuple[int, ...]
    stop: bool
    end: bool


class Milestones:
    """The milestones of one run.

    Args:
        config: of the run.
        rung_tokens: ascending training tokens of the rungs.
        stop_at_tokens: training tokens to end at, or None.
        rung_seconds: ascending seconds of training of the rungs, in place of `rung_tokens`.
        first_timed_rung: the first of them that is still to be reported.
        stop_at_timed_rung: the one of them to end at, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        rung_tokens: Sequence[int] = (),
        stop_at_tokens: int | None = None,
        rung_seconds: Sequence[float] = (),
        first_timed_rung: int = 0,
        stop_at_timed_rung: int | None = None,
    ) -> None:
        self._config = config
        self._rung_steps = [config.steps_for_tokens(tokens) for tokens in rung_tokens]
        self._stop_step = None if stop_at_tokens is None else config.steps_for_tokens(stop_at_tokens)
        self._rung_seconds = tuple(rung_seconds)
        self._num_reported = first_timed_rung
        self._stop_s = math.inf if stop_at_timed_rung is None else self._rung_seconds[stop_at_timed_rung]

    def at(self, step: int, *, duration_s: float = 0.0) -> Milestone:
        """Return what happens once `step` updates are done; step 0 is before the first.

        Args:
            duration_s: seconds of training so far; only rungs in seconds depend on it.
        """
        loop = self._config.loop
        end = step >= self._config.num_steps
        if step == 0:
            duration_s = 0.0  # nothing is trained yet, whatever setting up took
        stop = not end and ((self._stop_step is not None and step >= self._stop_step) or duration_s >= self._stop_s)
        rungs = tuple(index for index, rung_step in enumerate(self._rung_steps) if rung_step == step)
        if not end:
            timed = enumerate(self._rung_seconds[self._num_reported :], start=self._num_reported)
            rungs += tuple(index for index, seconds in timed if seconds <= duration_s)
        return Milestone(
            evaluate=step == 0 or end or bool(rungs) or self._crosses(loop.evaluate_every_tokens, step),
            checkpoint=end or stop or bool(rungs) or self._crosses(loop.checkpoint_every_tokens, step),
            rungs=rungs,
            stop=stop,
            end=end,
        )

    def reported(self, rung: int) -> None:
        """Note that a rung was reported: one in seconds is not reached again at a later step."""
        self._num_reported = max(self._num_reported, rung + 1)

    def _crosses(self, every_tokens: int | None, step: int) -> bool:
        """Whether a multiple of `every_tokens` lies in the tokens of this step, its last included."""
        if every_tokens is None or step == 0:
            return False
        tokens = self._config.step_tokens
        return step * tokens // every_tokens > (step - 1) * tokens // every_tokens
