"""Training: everything a run holds between two steps, and how it is built, resumed, evaluated, saved and summed up."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.balancing.build import build_balancers
from trainer.checkpoint import load_checkpoint, remove_unfinished, save_checkpoint
from trainer.checkpoint_manifest import Manifest, checkpoint_folder
from trainer.config import TrainConfig
from trainer.config.run import CheckpointReport, DomainEvaluation, RunSummary, StartReport
from trainer.config.start import ForkStartConfig
from trainer.environment import write_environment
from trainer.evaluation import evaluate
from trainer.fork import load_fork, opened_fork
from trainer.lookahead import measure_lookahead
from trainer.metrics.throughput import TrainingClock, tokens_per_s
from trainer.model.build import build_model
from trainer.model.size import flops_per_token, model_size
from trainer.optimizers.build import build_optimizer
from trainer.precision.build import build_precision
from trainer.probe import RoutingProbe
from trainer.random_state import random_state, restore_random_state
from trainer.schedules.build import build_schedule
from trainer.specialization import measure_specialization
from trainer.spike_policy import SpikePolicy
from trainer.start.build import apply_start
from trainer.start.freezing import freeze, trains_experts
from trainer.step import TrainStep
from trainer.telemetry.recorder import OnProgress, Telemetry, delete_telemetry_after
from trainer.training_data import open_data
from trainer.update import Update
from trainer.world import World

logger = logging.getLogger(__name__)

Evaluation = Mapping[str, DomainEvaluation]


class Training:
    """The state of one run on one worker.

    Args:
        config: of the run.
        folder: the run's folder, existing.
        world: this worker among the others.
        cache_folder: where tokenised corpora are kept.
        start_root: what `config.start.path` is relative and confined to; None takes any path.
        resume_from: checkpoint to continue from, or None.
        any_code: continue from it even if other code wrote it.
        on_progress: called on rank 0 with each progress written.

    Attributes:
        step: updates done.
        checkpoint: the newest one, possibly of an earlier run; None before the first.
        clock: counts training time.
        telemetry: records every step.

    Raises:
        CheckpointInvalid, ResumeMismatch: `resume_from` cannot be continued from.
        StartInvalid, NotImportable: there are no weights to start from at `config.start`, or not the ones it means.
        DataInvalid: the data do not match their manifest.
        ValueError: the batch cannot be divided over the workers.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        folder: Path,
        world: World,
        cache_folder: Path,
        start_root: Path | None,
        resume_from: Path | None,
        any_code: bool = False,
        on_progress: OnProgress,
    ) -> None:
        self._config = config
        self._folder = folder
        self._world = world
        self._any_code = any_code
        self._data = open_data(config, cache_folder=cache_folder)
        self._model = build_model(config.model, seed=config.seed, device=world.device)
        # A resumed run has its weights in the checkpoint, and what they began as in its state.
        self._start = apply_start(config, self._model, root=start_root) if resume_from is None else None
        freeze(self._model, config.trained)
        self._optimizer = build_optimizer(config.optimizer, self._model)
        self._update = Update(config.loop, model=self._model, optimizer=self._optimizer, device=world.device)
        self._precision = build_precision(config.precision, world.device)
        self._precision.apply_to(self._model)
        self._probe = RoutingProbe(config, self._data.evaluation_sets)
        self._initial: Evaluation = {}
        self._last: Evaluation = {}
        self._last_step: int | None = None
        self.step = 0
        self.checkpoint: CheckpointReport | None = None
        self.clock = TrainingClock()
        self._spike_policy = SpikePolicy(config.loop.spike_policy, log_every_steps=config.loop.log_every_steps)
        self.telemetry = Telemetry(
            config,
            folder=folder if world.is_main else None,
            layers=[index for index, kind in enumerate(config.model.layer_kinds()) if kind == "moe"],
            world=world,
            clock=self.clock,
            samples_of_step=lambda step: self._data.samples_of_step(self._spike_policy.batch_number(step)),
            spike_policy=self._spike_policy,
            on_progress=on_progress,
        )
        if resume_from is not None:
            self._resume(resume_from)
        elif isinstance(config.start, ForkStartConfig):
            self._fork(cache_folder, start_root)
        if world.is_main:
            write_environment(
                folder,
                world=world,
                data_fingerprint=self._data.fingerprint,
                precision=self._precision.description,
                start=self._start,
            )
            remove_unfinished(folder)
            if resume_from is None:
                # What an attempt that never came to a checkpoint left behind.
                delete_telemetry_after(folder, -1)
            elif resume_from.resolve().parent.parent == folder.resolve():
                delete_telemetry_after(folder, self.step)
        self._train_step = TrainStep(
            config,
            model=self._model,
            optimizer=self._optimizer,
            update=self._update,
            schedule=build_schedule(config.schedule, num_steps=config.num_steps),
            balancers=[
                balancer
                for balancer in build_balancers(config.model.moe)
                if trains_experts(config.trained) or not balancer.needs_selection_bias
            ],
            precision=self._precision,
            mixture=self._data.mixture,
            world=world,
        )

    @property
    def tokens(self) -> int:
        """Training tokens so far, over all workers."""
        return self.step * self._config.step_tokens

    @property
    def evaluation_here(self) -> Evaluation | None:
        """The evaluation at this step; None if there was none."""
        return self._last if self._last_step == self.step else None

    def advance(self) -> None:
        """Do one optimizer step. Does not wait for the device."""
        self.step += 1
        lr = self._train_step(
            self.step,
            self.telemetry.buffer,
            batch_number=self._spike_policy.batch_number(self.step),
            lr_factor=self._spike_policy.lr_factor(self.step),
        )
        self.telemetry.step_done(lr=lr)

    def rewind_if_due(self) -> bool:
        """Go back to the newest checkpoint if a spike asks for that, and return whether the run did.

        Called where all steps are drained and before anything of them is saved, so the newest checkpoint is one from
        before the spike. Without any, the spike is only recorded.
        """
        spike_step = self._spike_policy.rewind_from
        if spike_step is None:
            return False
        if self.checkpoint is None:
            logger.warning("step %d spiked and there is no checkpoint before it to go back to", spike_step)
            self._spike_policy.cannot_rewind()
            return False
        to_step = self.checkpoint.step
        logger.info("step %d spiked, going back to step %d", spike_step, to_step)
        policy, abandoned = self._spike_policy.copy(), self.telemetry.abandon()
        with self.clock.excluded():
            self._resume(Path(self.checkpoint.folder), duration_s=self.clock.duration_s)
            if self._world.is_main:
                delete_telemetry_after(self._folder, to_step)
        self._spike_policy.rewound(policy, to_step=to_step)
        self.telemetry.rewound(abandoned, number=self._spike_policy.num_rewinds, to_step=to_step)
        return True

    def evaluate(self) -> Evaluation:
        """Evaluate at this step, unless that has been done, and return the figures."""
        if self.evaluation_here is None:
            self.telemetry.drain()
            with self.clock.excluded():
                self._last = evaluate(
                    self._model,
                    self._data.evaluation_sets,
                    batch_size=self._config.loop.micro_batch_size,
                    precision=self._precision,
                    world=self._world,
                )
            self._last_step = self.step
            if self.step == 0:
                self._initial = self._last
            self.telemetry.add_evaluation(self._last, step=self.step)
            if self._probe.is_on:
                with self.clock.excluded():
                    values = self._probe.measure(self._model, precision=self._precision, step=self.step)
                self.telemetry.add_probe(values, step=self.step)
        return self._last

    def save(self) -> CheckpointReport:
        """Write all telemetry and a checkpoint of this step, unless there is one, and return its report.

        The report has the manifest's checksum on rank 0 only.
        """
        if self.checkpoint is not None and self.checkpoint.step == self.step:
            return self.checkpoint
        self.telemetry.drain()
        with self.clock.excluded():
            started_s = time.perf_counter()
            # Before the checkpoint: a resumed run writes what comes after it, so borders of chunks have to be here.
            self.telemetry.write()
            self.telemetry.checkpoint_made(self.step)
            state = self._state()
            sha256 = ""
            if self._world.is_main:
                _, manifest = save_checkpoint(
                    self._folder,
                    step=self.step,
                    config=self._config,
                    data_fingerprint=self._data.fingerprint,
                    world_size=self._world.world_size,
                    model=self._model,
                    optimizer=self._optimizer,
                    update=self._update,
                    state=state,
                )
                sha256 = manifest.sha256
            self._world.barrier()
        self.checkpoint = CheckpointReport(
            step=self.step,
            tokens=self.tokens,
            folder=str(checkpoint_folder(self._folder, self.step).absolute()),
            manifest_sha256=sha256,
            duration_s=time.perf_counter() - started_s,
        )
        return self.checkpoint

    def summary(self) -> RunSummary:
        """Return the summary of a run that has trained its whole budget and was evaluated."""
        config, tail = self._config, self.telemetry.tail
        size, router = model_size(config.model), tail.router
        return RunSummary(
            final_loss=tail.loss,
            initial_bits_per_byte=_bits_per_byte(self._initial),
            bits_per_byte=_bits_per_byte(self._last),
            worst_max_violation=router and router.worst_max_violation,
            worst_max_violation_layer=router and router.worst_max_violation_layer,
            min_token_entropy=router and router.min_token_entropy,
            min_load_entropy=router and router.min_load_entropy,
            max_dead_fraction=router and router.max_dead_fraction,
            num_spikes=self.telemetry.num_spikes,
            num_skipped_steps=self.telemetry.num_skipped_steps,
            precision=self._precision.description,
            tokens_per_s=tokens_per_s(self.tokens, self.clock.duration_s),
            training_duration_s=self.clock.duration_s,
            total_parameters=size.total,
            active_parameters=size.active,
            flops_per_token=flops_per_token(config.model, seq_len=config.data.seq_len),
            router_saturation=self._probe.saturation() if self._probe.is_on else None,
            domain_information=measure_specialization(config, self._model, self._data.evaluation_sets),
            start=self._start,
            lookahead=measure_lookahead(
                config,
                self._model,
                self._data.evaluation_sets,
                micro_batch_size=min(
                    config.loop.micro_batch_size, config.loop.global_batch_size // self._world.world_size
                ),
                precision=self._precision,
            ),
        )

    def _state(self) -> dict[str, Any]:
        """Return what, besides tensors, a resumed run needs. Every worker must call it."""
        return {
            "next_sample_index": (self._spike_policy.batch_number(self.step + 1) - 1)
            * self._config.loop.global_batch_size,
            "spike_policy": self._spike_policy.state(),
            "probe": self._probe.state(),
            "training_duration_s": self.clock.duration_s,
            "random_states": random_state(self._world),
            "telemetry": self.telemetry.state(),
            "initial_evaluation": _plain(self._initial),
            "last_evaluation": _plain(self._last),
            "last_evaluation_step": self._last_step,
            "start": None if self._start is None else self._start.model_dump(mode="json"),
        }

    def _resume(self, path: Path, *, duration_s: float | None = None) -> None:
        """Put everything back to a checkpoint; `duration_s` of training were spent so far, None: as it says."""
        manifest, state = load_checkpoint(
            path,
            config=self._config,
            data_fingerprint=self._data.fingerprint,
            model=self._model,
            optimizer=self._optimizer,
            update=self._update,
            any_code=self._any_code,
        )
        if duration_s is not None:
            state["training_duration_s"] = duration_s
        self._put_back(path, manifest, state)
        self.checkpoint = CheckpointReport(
            step=manifest.step,
            tokens=manifest.tokens,
            folder=str(path.absolute()),
            manifest_sha256=manifest.sha256,
            duration_s=0.0,
        )
        self._start = None if state["start"] is None else StartReport.model_validate(state["start"])

    def _fork(self, cache_folder: Path, start_root: Path | None) -> None:
        source = opened_fork(self._config, root=start_root)
        parent, config = source.config, self._config
        data = self._data if parent.data == config.data else open_data(parent, cache_folder=cache_folder)
        state = load_fork(
            source,
            config=config,
            parent_data_fingerprint=data.fingerprint,
            model=self._model,
            optimizer=self._optimizer,
            update=self._update,
        )
        new: dict[str, Any] = self.telemetry.state()
        if parent.num_steps != config.num_steps:
            # The last steps of another length: what was averaged so far is not of them.
            state["telemetry"]["tail"] = new["tail"]
        if parent.data != config.data or parent.loop.probe_tokens != config.loop.probe_tokens:
            state["probe"] = self._probe.state()  # other tokens: nothing to compare with
        rules = {"warn_when", "stop_when"}
        if parent.model_dump(include=rules) != config.model_dump(include=rules):
            state["telemetry"]["alarms"] = new["alarms"]
        self._put_back(source.path, source.manifest, state)

    def _put_back(self, path: Path, manifest: Manifest, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written: all but tensors."""
        here, there = (self._world.world_size, torch.get_num_threads()), (manifest.world_size, manifest.num_threads)
        if here != there:
            logger.warning("%s was written by %d workers of %d threads: the resume is not bit-exact", path, *there)
        self.step = manifest.step
        self.clock.resume_from(state["training_duration_s"])
        self._spike_policy.restore(state["spike_policy"])
        self._probe.restore(state["probe"])
        self.telemetry.restore(state["telemetry"], step=self.step)
        restore_random_state(state["random_states"], self._world)
        self._initial = _evaluation(state["initial_evaluation"])
        self._last = _evaluation(state["last_evaluation"])
        self._last_step = state["last_evaluation_step"]


def _bits_per_byte(evaluation: Evaluation) -> dict[str, float]:
    return {domain: figures.bits_per_byte for domain, figures in evaluation.items()}


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    return {domain: figures.model_dump() for domain, figures in evaluation.items()}


def _evaluation(plain: Mapping[str, Any]) -> Evaluation:
    return {domain: DomainEvaluation.model_validate(figures) for domain, figures in plain.items()}
