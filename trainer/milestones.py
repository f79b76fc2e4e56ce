"""Milestones: at which steps a run evaluates, writes a checkpoint, reports a rung or ends: a pure function."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config import TrainConfig


@dataclass(frozen=True)
class Milestone:
    """What happens after a step.

    Attributes:
        evaluate, checkpoint: whether to.
        rungs: indices into the rung tokens that are reached at this step; close rungs may share a step.
        stop: the run ends here before its budget (a segment of a synchronous experiment).
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
    """

    def __init__(
        self, config: TrainConfig, *, rung_tokens: Sequence[int] = (), stop_at_tokens: int | None = None
    ) -> None:
        self._config = config
        self._rung_steps = [config.steps_for_tokens(tokens) for tokens in rung_tokens]
        self._stop_step = None if stop_at_tokens is None else config.steps_for_tokens(stop_at_tokens)

    def at(self, step: int) -> Milestone:
        """Return what happens once `step` updates are done; step 0 is before the first."""
        loop = self._config.loop
        end = step >= self._config.num_steps
        stop = not end and self._stop_step is not None and step >= self._stop_step
        rungs = tuple(index for index, rung_step in enumerate(self._rung_steps) if rung_step == step)
        return Milestone(
            evaluate=step == 0 or end or bool(rungs) or self._crosses(loop.evaluate_every_tokens, step),
            checkpoint=end or stop or bool(rungs) or self._crosses(loop.checkpoint_every_tokens, step),
            rungs=rungs,
            stop=stop,
            end=end,
        )

    def _crosses(self, every_tokens: int | None, step: int) -> bool:
        """Whether a multiple of `every_tokens` lies in the tokens of this step, its last included."""
        if every_tokens is None or step == 0:
            return False
        tokens = self._config.step_tokens
        return step * tokens // every_tokens > (step - 1) * tokens // every_tokens
