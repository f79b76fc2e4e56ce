"""Telemetry: from the rows of the device buffer to chunks, spikes, progress and the averages of a run's summary."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.config import TrainConfig
from trainer.config.precision import QuantizedExpertsSection
from trainer.config.run import DomainEvaluation
from trainer.errors import TrainingDiverged
from trainer.gradient_norms import ROLES
from trainer.metrics.alarm_rules import watched_metrics
from trainer.metrics.catalog import ROUTER_SCALARS, SCALARS, UPDATE_SCALARS
from trainer.metrics.history import RunHistory
from trainer.metrics.quantization import quantization_losses
from trainer.metrics.router_health import router_health
from trainer.metrics.throughput import TrainingClock, tokens_per_s
from trainer.spike_policy import SpikePolicy
from trainer.telemetry.alarms import ALARMS_FILE, AlarmRecorder
from trainer.telemetry.chunks import ChunkWriter, StepBlock, delete_chunks_after
from trainer.telemetry.event_lines import Event
from trainer.telemetry.machine import MACHINE_FILE, MachineRecorder
from trainer.telemetry.progress import Progress, write_progress
from trainer.telemetry.spike_events import SPIKES_FILE, ObservedStep, Samples, SpikeRecorder
from trainer.telemetry.step_buffer import StepBuffer, StepRows
from trainer.telemetry.tail import TailMeans
from trainer.world import World

MIN_WRITE_INTERVAL_S = 2.0
MAX_WRITE_INTERVAL_S = 60.0
WRITE_INTERVAL_FRACTION = 0.02
"""Chunks are written every 2 s at first, then every 2 % of the time elapsed: a long run has hundreds, not thousands."""

PROGRESS_INTERVAL_S = 1.0

OnProgress = Callable[[Progress], None]


class Telemetry:
    """Records every step of a run.

    Args:
        config: of the run.
        folder: the run's folder; None on workers other than rank 0, which write nothing.
        layers: index in the whole model of each MoE layer.
        world: this worker among the others.
        clock: counts training time.
        samples_of_step: what a step (1-based) was trained on.
        on_progress: called with each progress written.
        spike_policy: told of spikes; None: nothing is done about them.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        folder: Path | None,
        layers: Sequence[int],
        world: World,
        clock: TrainingClock,
        samples_of_step: Callable[[int], Samples],
        on_progress: OnProgress,
        spike_policy: SpikePolicy | None = None,
    ) -> None:
        self._config = config
        self._folder = folder
        self._layers = tuple(layers)
        self._clock = clock
        self._on_progress = on_progress
        self._chunks = None if folder is None else ChunkWriter(folder, layers=layers)
        self._spikes = SpikeRecorder(folder, samples_of_step=samples_of_step)
        self._spike_policy = spike_policy or SpikePolicy(
            config.loop.spike_policy, log_every_steps=config.loop.log_every_steps
        )
        self._alarms = AlarmRecorder(folder, watched=watched_metrics(config), layers=layers)
        self._machine = MachineRecorder(folder, device=world.device)
        self._history = RunHistory(
            num_layers=len(layers), num_experts=config.model.moe.num_experts if config.model.moe else 0
        )
        self.tail = TailMeans(num_steps=config.num_steps, layers=self._layers)
        self.buffer = StepBuffer(
            log_every_steps=config.loop.log_every_steps,
            num_layers=len(layers),
            num_experts=config.model.moe.num_experts if config.model.moe else 0,
            num_null_experts=config.model.moe.num_null_experts if config.model.moe else 0,
            step_tokens=config.step_tokens,
            world=world,
            quantizes=isinstance(config.precision, QuantizedExpertsSection),
        )
        self._step = 0
        self._lrs: list[float] = []
        self._times_ms: list[int] = []
        self._drained_at_s = clock.duration_s
        self._started_s = self._written_s = time.monotonic()
        self._progress_s = -math.inf
        self._progress: Progress | None = None
        self._bits_per_byte: float | None = None
        self.num_skipped_steps = 0
        """Steps without an update so far."""

    @property
    def num_spikes(self) -> int:
        """Spikes detected so far."""
        return self._spikes.num_spikes

    @property
    def stopped_by(self) -> str | None:
        """What a rule of the config has the run end for, in words; None while it may go on."""
        return self._alarms.stopped_by

    def step_done(self, *, lr: float) -> None:
        """Note that the open row of the buffer is complete. Host work only."""
        self._lrs.append(lr)
        self._times_ms.append(_now_ms())

    @property
    def is_drained(self) -> bool:
        """Whether every step so far has been taken in."""
        return self.buffer.num_rows == 0

    def drain_due(self, step: int) -> bool:
        """Return whether the buffer must be drained before the next step."""
        return step % self._config.loop.log_every_steps == 0 or self.buffer.num_rows >= self.buffer.capacity

    def drain(self) -> None:
        """Copy the finished steps from the device and take them in.

        Raises:
            TrainingDiverged: a loss or gradient norm is not finite. The steps up to it are recorded, no later ones.
        """
        if not self.buffer.num_rows:
            return
        rows = self.buffer.drain()
        duration_s = self._clock.duration_s - self._drained_at_s
        self._drained_at_s = self._clock.duration_s
        bad = ~np.isfinite(rows.loss) | ~np.isfinite(rows.grad_norm)
        diverged = bool(bad.any())
        num_good = int(bad.argmax()) if diverged else len(bad)
        block = self._block(rows, duration_s, num_good + diverged)
        if self._chunks is not None:
            self._chunks.add_steps(block)
        self.num_skipped_steps += int(rows.skipped[:num_good].sum())
        self._alarms.observe(block, num_good)
        for index in range(num_good):
            self._observe(block, index)
            if self._spike_policy.rewind_from is not None:
                break  # the steps after it will not have been
        self._step += len(rows.loss)
        self._lrs.clear()
        self._times_ms.clear()
        self._note_progress(block, num_good)
        if diverged and self._spike_policy.rewind_from is None:
            step = int(block.steps[num_good])
            raise TrainingDiverged(
                f"step {step}: loss {rows.loss[num_good]}, gradient norm {rows.grad_norm[num_good]}, learning rate "
                f"{block.scalars['optimizer/lr'][num_good]:.3g}; lower the learning rate or max_grad_norm"
            )

    def write_if_due(self) -> None:
        """Write chunks if the last ones are old enough."""
        now_s = time.monotonic()
        interval_s = WRITE_INTERVAL_FRACTION * (now_s - self._started_s)
        if now_s - self._written_s >= min(max(interval_s, MIN_WRITE_INTERVAL_S), MAX_WRITE_INTERVAL_S):
            self.write()

    def write(self) -> None:
        """Write everything drained as chunks, the progress as it is, and how the machine is."""
        self._written_s = time.monotonic()
        if self._chunks is not None:
            self._chunks.write()
        self._machine.sample(self._step)
        if self._folder is not None and self._progress is not None:
            latest = replace(self._progress, bits_per_byte=self._bits_per_byte, num_spikes=self.num_spikes)
            write_progress(self._folder, latest)

    def close(self) -> None:
        """Write everything, spikes that are still open included."""
        self._spikes.close()
        self.write()

    def add_evaluation(self, evaluation: Mapping[str, DomainEvaluation], *, step: int) -> None:
        """Record the figures of one evaluation."""
        self._bits_per_byte = evaluation["all"].bits_per_byte
        if self._chunks is not None:
            self._chunks.add_evaluation(
                step=step, tokens=step * self._config.step_tokens, time_ms=_now_ms(), evaluation=evaluation
            )

    def add_probe(self, values: Mapping[str, NDArray[np.float64]], *, step: int) -> None:
        """Record the figures of the probe set, one per layer, at one evaluation."""
        if self._chunks is not None:
            self._chunks.add_probe(step=step, tokens=step * self._config.step_tokens, time_ms=_now_ms(), values=values)

    def abandon(self) -> list[Event]:
        """Forget what was drained and not written; return the events of the spikes that the run goes back for."""
        if self._chunks is not None:
            self._chunks.discard()
        return self._spikes.abandoned()

    def rewound(self, abandoned: Sequence[Event], *, number: int, to_step: int) -> None:
        """Note that the run has gone back for the `number`-th time, for the spikes `abandoned`, to `to_step`."""
        self._spikes.rewound(abandoned, number=number, to_step=to_step)

    def checkpoint_made(self, step: int) -> None:
        """Note that the run can be put back to `step`."""
        self._spikes.checkpoint_made(step)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to record as if it had not been interrupted, as JSON values."""
        return {
            "spikes": self._spikes.state(),
            "alarms": self._alarms.state(),
            "history": self._history.state(),
            "tail": self.tail.state(),
            "bits_per_byte": self._bits_per_byte,
            "num_skipped_steps": self.num_skipped_steps,
        }

    def restore(self, state: Mapping[str, Any], *, step: int) -> None:
        """Put back what `state` returned after `step`."""
        self._step = step
        self._spikes.restore(state["spikes"], step=step)
        self._alarms.restore(state["alarms"], step=step)
        self._machine.restore(step=step)
        self._history.restore(state["history"])
        self.tail.restore(state["tail"])
        self._bits_per_byte = state["bits_per_byte"]
        self.num_skipped_steps = state["num_skipped_steps"]
        self._drained_at_s = self._clock.duration_s

    def _block(self, rows: StepRows, duration_s: float, num_steps: int) -> StepBlock:
        kept = slice(0, num_steps)
        steps = self._step + 1 + np.arange(num_steps, dtype=np.int64)
        each = np.ones(num_steps)
        scalars = {
            "train/loss": rows.loss[kept],
            "train/loss_rise": self._history.rises(rows.loss[kept]),
            "train/balancing_loss": rows.balancing_loss[kept],
            "train/skipped_step": rows.skipped[kept],
            "optimizer/lr": np.array(self._lrs[kept]),
            "optimizer/grad_norm": rows.grad_norm[kept],
            "throughput/step_duration_s": each * duration_s / len(rows.loss),
            "throughput/tokens_per_s": each * tokens_per_s(len(rows.loss) * self._config.step_tokens, duration_s),
        }
        scalars |= {f"optimizer/{role}_grad_norm": rows.groups[kept, index] for index, role in enumerate(ROLES)}
        assert scalars.keys() == set(SCALARS), "the catalogue and the telemetry name the same scalars"
        if self._config.loop.measure_updates_every_steps is not None:
            scalars |= {name: rows.ratios[kept, index] for index, name in enumerate(UPDATE_SCALARS)}
        router: dict[str, NDArray[np.float64]] = {}
        loads_E = np.zeros((num_steps, 0, 0), dtype=np.int64)
        if rows.router is not None:
            router = {name: values[kept] for name, values in router_health(rows.router).items()}
            router |= self._history.loads(rows.router.counts_E[kept])
            by_layer = rows.groups[kept, len(ROLES) :]
            router["router/grad_norm"], router["router/expert_grad_norm"] = np.split(by_layer, 2, axis=1)
            assert router.keys() == set(ROUTER_SCALARS), "the catalogue and the telemetry name the same metrics"
            if rows.casts is not None:
                router |= quantization_losses(rows.casts[kept])
            loads_E = rows.router.counts_E[kept]
        return StepBlock(
            steps=steps,
            tokens=steps * self._config.step_tokens,
            time_ms=np.array(self._times_ms[kept], dtype=np.int64),
            scalars=scalars,
            router=router,
            loads_E=loads_E,
        )

    def _observe(self, block: StepBlock, index: int) -> None:
        step = int(block.steps[index])
        router = [
            {
                "layer": layer,
                "max_violation": float(block.router["router/max_violation"][index, position]),
                "token_entropy": float(block.router["router/token_entropy"][index, position]),
            }
            for position, layer in enumerate(self._layers)
        ]
        spiking = self._spikes.observe(
            ObservedStep(
                step=step,
                tokens=int(block.tokens[index]),
                time_ms=int(block.time_ms[index]),
                values={name: float(block.scalars[name][index]) for name in ("train/loss", "optimizer/grad_norm")},
                lr=float(block.scalars["optimizer/lr"][index]),
                router=router,
                grad_norms={role: float(block.scalars[f"optimizer/{role}_grad_norm"][index]) for role in ROLES},
            )
        )
        if spiking:
            self._spike_policy.spiked(step, spiking)
        self.tail.add(
            step,
            loss=float(block.scalars["train/loss"][index]),
            router={name: values[index] for name, values in block.router.items()},
        )

    def _note_progress(self, block: StepBlock, num_good: int) -> None:
        if not num_good or self._folder is None:
            return
        last = num_good - 1
        step, tokens = int(block.steps[last]), int(block.tokens[last])
        speed = float(block.scalars["throughput/tokens_per_s"][last])
        router = {name: values[last] for name, values in block.router.items()}
        worst = int(router["router/max_violation"].argmax()) if router else None
        self._progress = Progress(
            step=step,
            num_steps=self._config.num_steps,
            tokens=tokens,
            budget_tokens=self._config.loop.budget_tokens,
            loss=float(block.scalars["train/loss"][last]),
            tokens_per_s=speed,
            max_violation=None if worst is None else float(router["router/max_violation"][worst]),
            max_violation_layer=None if worst is None else self._layers[worst],
            token_entropy=float(router["router/token_entropy"].min()) if router else None,
            dead_fraction=float(router["router/dead_fraction"].max()) if router else None,
            bits_per_byte=self._bits_per_byte,
            num_spikes=self.num_spikes,
            eta_s=(self._config.num_steps - step) * self._config.step_tokens / speed if speed else None,
            updated_at_ms=_now_ms(),
        )
        if time.monotonic() - self._progress_s >= PROGRESS_INTERVAL_S:
            self._progress_s = time.monotonic()
            write_progress(self._folder, self._progress)
            self._on_progress(self._progress)


def delete_telemetry_after(folder: Path, step: int) -> None:
    """Delete chunks that start after `step`, which a resumed run writes anew; with -1 everything, events included."""
    delete_chunks_after(folder, step)
    if step < 0:
        for name in (SPIKES_FILE, ALARMS_FILE, MACHINE_FILE):
            (folder / name).unlink(missing_ok=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
