"""What a run does about spikes: which batch a step trains on, at what part of its learning rate, when it goes back.

All of it is a function of the spikes so far, which are a function of config and step. It acts where telemetry comes to
the host, so that no step waits for it: a lowered rate begins at a multiple of the logging interval, whenever the spike
became known; going back ends the same whenever it happens, since nothing after the checkpoint is kept.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trainer.config.spike_policies import LowerLearningRateConfig, RewindConfig, SpikePolicyConfig


class LaterBatches(NamedTuple):
    """Steps after `after_step` train on the batch so many later than their own."""

    after_step: int
    num_batches: int


class SpikePolicy:
    """Holds what follows from the spikes of a run.

    Args:
        config: the policy; `record` and `skip` ask for nothing here.
        log_every_steps: steps between copies of the telemetry.
    """

    def __init__(self, config: SpikePolicyConfig, *, log_every_steps: int) -> None:
        self._config = config
        self._log_every = log_every_steps
        self._later: list[LaterBatches] = []
        self._lowered: list[tuple[int, int]] = []
        self.num_rewinds = 0
        """How often the run has gone back."""
        self.rewind_from: int | None = None
        """The step whose spike the run has to go back for; None: for none."""

    def spiked(self, step: int, metrics: Sequence[str]) -> None:
        """Take note of the metrics that began to spike at a step."""
        config = self._config
        if isinstance(config, LowerLearningRateConfig) and config.metric in metrics:
            known_at = -(-step // self._log_every) * self._log_every
            self._lowered = [each for each in self._lowered if each[1] > step]
            self._lowered.append((known_at + 1, known_at + config.num_steps))
        elif isinstance(config, RewindConfig) and config.metric in metrics and self.rewind_from is None:
            self.rewind_from = step if self.num_rewinds < config.max_rewinds else None

    def lr_factor(self, step: int) -> float:
        """Return what the learning rate of a step is multiplied by."""
        if isinstance(self._config, LowerLearningRateConfig) and any(a <= step <= b for a, b in self._lowered):
            return self._config.factor
        return 1.0

    def batch_number(self, step: int) -> int:
        """Return the number (from 1) of the batch that a step trains on: its own, or a later one after going back."""
        return step + next((each.num_batches for each in reversed(self._later) if step > each.after_step), 0)

    def cannot_rewind(self) -> None:
        """There is no checkpoint before the spike: it is recorded only."""
        self.rewind_from = None

    def rewound(self, before: "SpikePolicy", *, to_step: int) -> None:
        """Note that the run is at `to_step` again, whose state this object holds, for what `before` knew."""
        assert isinstance(self._config, RewindConfig), "only this policy goes back"
        assert before.rewind_from is not None, "it went back for a spike"
        missed = before.batch_number(before.rewind_from) + self._config.num_skipped_steps
        self._later = [each for each in self._later if each.after_step < to_step]
        self._later.append(LaterBatches(to_step, missed - to_step))
        self.num_rewinds = before.num_rewinds + 1
        self.rewind_from = None

    def copy(self) -> "SpikePolicy":
        """Return an independent one that holds the same."""
        other = SpikePolicy(self._config, log_every_steps=self._log_every)
        other.restore(self.state())
        other.rewind_from = self.rewind_from
        return other

    def state(self) -> dict[str, Any]:
        """Return everything as JSON values; a spike to go back for is never left open in a checkpoint."""
        return {
            "later_batches": [list(each) for each in self._later],
            "lowered": [list(each) for each in self._lowered],
            "num_rewinds": self.num_rewinds,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned."""
        self._later = [LaterBatches(*each) for each in state["later_batches"]]
        self._lowered = [(first, last) for first, last in state["lowered"]]
        self.num_rewinds = state["num_rewinds"]
        self.rewind_from = None
