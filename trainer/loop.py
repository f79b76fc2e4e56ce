"""THE training loop: every run, on one worker or many, fresh or resumed, goes through `train`.

What a step computes is a function of (config, step) alone: data are found by index, nothing depends on the clock or on
how long a report takes. So a run that is killed and resumed from any of its checkpoints gives, on the CPU with the same
number of workers and threads, the same losses, loads and weights to the last bit.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.balancing.build import build_balancers
from trainer.checkpoint import checkpoint_folder, load_checkpoint, remove_unfinished, save_checkpoint
from trainer.config import TrainConfig
from trainer.config.run import CheckpointReport, DomainEvaluation, RunReport, RunSummary
from trainer.environment import write_environment
from trainer.evaluation import evaluate
from trainer.metrics.throughput import TrainingClock, tokens_per_s
from trainer.milestones import Milestones
from trainer.model.build import build_model
from trainer.model.size import flops_per_token, model_size
from trainer.optimizers.build import build_optimizer
from trainer.precision.build import build_precision
from trainer.random_state import random_state, restore_random_state, seed_everything
from trainer.reporter import Reporter
from trainer.schedules.build import build_schedule
from trainer.specialization import measure_specialization
from trainer.step import TrainStep
from trainer.telemetry.recorder import Telemetry, delete_telemetry_after
from trainer.training_data import TrainingData, open_data
from trainer.world import World

logger = logging.getLogger(__name__)

Evaluation = Mapping[str, DomainEvaluation]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        kind: `finished` with the whole budget trained, or `stopped` before.
        step, tokens: how far it came.
        evaluation: the last one.
        checkpoint: of the last step.
        summary: of a finished run.
    """

    kind: Literal["finished", "stopped"]
    step: int
    tokens: int
    evaluation: Evaluation
    checkpoint: CheckpointReport
    summary: RunSummary | None


@dataclass
class _Evaluations:
    """The two evaluations a run has to remember."""

    initial: Evaluation = field(default_factory=dict)
    last: Evaluation = field(default_factory=dict)
    last_step: int = -1


def train(
    config: TrainConfig,
    *,
    folder: Path,
    reporter: Reporter,
    world: World,
    cache_folder: Path,
    resume_from: Path | None = None,
    rung_tokens: Sequence[int] = (),
    stop_at_tokens: int | None = None,
) -> TrainResult:
    """Train the model of `config` and return how it ended.

    Reports `started`, then `progress` at step 0, evaluations, checkpoints and rungs, then `finished` or `stopped`.

    Args:
        config: of the run.
        folder: the run's folder, existing; written by rank 0.
        reporter: told what happens, asked whether to stop. May block.
        world: this worker among the others.
        cache_folder: where tokenised corpora are kept.
        resume_from: checkpoint to continue from, in this folder or in that of an earlier run of the trial.
        rung_tokens: ascending training tokens at which to evaluate, checkpoint and report a rung.
        stop_at_tokens: training tokens to stop at, with a checkpoint.

    Raises:
        TrainingDiverged: the loss or the gradient norm is not finite.
        CheckpointInvalid, ResumeMismatch: `resume_from` cannot be continued from.
        DataInvalid: the data do not match their manifest.
        ValueError: the batch cannot be divided over the workers.
    """
    with seed_everything(config.seed + world.rank, world.device):
        data = open_data(config, cache_folder=cache_folder)
        model = build_model(config.model, seed=config.seed, device=world.device)
        optimizer = build_optimizer(config.optimizer, model)
        precision = build_precision(config.precision, world.device)
        milestones = Milestones(config, rung_tokens=rung_tokens, stop_at_tokens=stop_at_tokens)
        step, checkpoint, evaluations = 0, None, _Evaluations()
        saved: dict[str, Any] | None = None
        if resume_from is not None:
            manifest, saved = load_checkpoint(
                resume_from, config=config, data_fingerprint=data.fingerprint, model=model, optimizer=optimizer
            )
            step = manifest.step
            checkpoint = CheckpointReport(
                step=step,
                tokens=manifest.tokens,
                folder=str(resume_from),
                manifest_sha256=manifest.sha256,
                duration_s=0.0,
            )
            if (manifest.world_size, manifest.num_threads) != (world.world_size, torch.get_num_threads()):
                logger.warning(
                    "resuming %s, written with %d workers of %d threads, with %d of %d: not bit-exact",
                    resume_from,
                    manifest.world_size,
                    manifest.num_threads,
                    world.world_size,
                    torch.get_num_threads(),
                )
        if world.is_main:
            write_environment(folder, world=world, data_fingerprint=data.fingerprint)
            remove_unfinished(folder)
            if resume_from is None:
                # What an attempt that never came to a checkpoint left behind.
                delete_telemetry_after(folder, -1)
            elif resume_from.resolve().parent.parent == folder.resolve():
                delete_telemetry_after(folder, step)

        clock = TrainingClock(duration_s=saved["training_duration_s"] if saved else 0.0)
        telemetry = Telemetry(
            config,
            folder=folder if world.is_main else None,
            layers=[index for index, kind in enumerate(config.model.layer_kinds()) if kind == "moe"],
            world=world,
            clock=clock,
            samples_of_step=data.samples_of_step,
            on_progress=reporter.progress,
        )
        if saved is not None:
            telemetry.restore(saved["telemetry"], step=step)
            restore_random_state(saved["random_states"], world)
            evaluations = _Evaluations(
                initial=_evaluation_of(saved["initial_evaluation"]),
                last=_evaluation_of(saved["last_evaluation"]),
                last_step=saved["last_evaluation_step"],
            )
        train_step = TrainStep(
            config,
            model=model,
            optimizer=optimizer,
            schedule=build_schedule(config.schedule, num_steps=config.num_steps),
            balancers=build_balancers(config.model.moe),
            precision=precision,
            mixture=data.mixture,
            world=world,
        )

        def report(kind: Literal["started", "progress", "finished", "stopped"], **parts: Any) -> None:
            if world.is_main:
                with clock.excluded():
                    reporter.report(RunReport(kind=kind, step=step, tokens=step * config.step_tokens, **parts))

        def evaluate_now() -> Evaluation:
            if evaluations.last_step != step:
                telemetry.drain()
                with clock.excluded():
                    figures = evaluate(
                        model,
                        data.evaluation_sets,
                        batch_size=config.loop.micro_batch_size,
                        precision=precision,
                        world=world,
                    )
                telemetry.add_evaluation(figures, step=step)
                evaluations.last, evaluations.last_step = figures, step
                if step == 0:
                    evaluations.initial = figures
            return evaluations.last

        def save_now() -> CheckpointReport:
            telemetry.drain()
            with clock.excluded():
                telemetry.write()
                state = {
                    "training_duration_s": clock.duration_s,
                    "next_sample_index": step * config.loop.global_batch_size,
                    "random_states": random_state(world),
                    "telemetry": telemetry.state(),
                    "initial_evaluation": _plain(evaluations.initial),
                    "last_evaluation": _plain(evaluations.last),
                    "last_evaluation_step": evaluations.last_step,
                }
                return _save(folder, config, data, world, step=step, model=model, optimizer=optimizer, state=state)

        try:
            report("started")
            milestone = milestones.at(step)
            if step == 0:
                report("progress", evaluation=evaluate_now())
            elif milestone.rungs:
                # The run before this one may have been killed between its checkpoint and its report.
                evaluate_now()
                for rung in milestone.rungs:
                    report("progress", rung=rung, evaluation=evaluations.last, checkpoint=checkpoint)
            stopping = milestone.stop

            while not milestone.end and not stopping:
                step += 1
                telemetry.step_done(lr=train_step(step, telemetry.buffer))
                milestone = milestones.at(step)
                drained = telemetry.drain_due(step)
                if drained:
                    telemetry.drain()
                    telemetry.write_if_due()
                # Several workers agree on stopping where they wait for the device anyway.
                may_ask = world.world_size == 1 or drained
                stopping = milestone.stop or (may_ask and not milestone.end and world.any(reporter.should_stop()))
                evaluation = evaluate_now() if milestone.evaluate else None
                saved_here = save_now() if milestone.checkpoint or stopping else None
                checkpoint = saved_here or checkpoint
                for rung in milestone.rungs:
                    report("progress", rung=rung, evaluation=evaluation, checkpoint=saved_here)
                if (evaluation or saved_here) and not (milestone.rungs or milestone.end or stopping):
                    report("progress", evaluation=evaluation, checkpoint=saved_here)

            if checkpoint is None:  # asked to stop before the first step
                checkpoint = save_now()
            kind = "finished" if milestone.end else "stopped"
            summary = None
            if milestone.end:
                evaluate_now()
                summary = _summary(config, telemetry, evaluations, clock) if world.is_main else None
            if summary is not None:
                summary = summary.model_copy(
                    update={"domain_information": measure_specialization(config, model, data.evaluation_sets)}
                )
            telemetry.close()
            result = TrainResult(
                kind=kind,
                step=step,
                tokens=step * config.step_tokens,
                evaluation=evaluations.last,
                checkpoint=checkpoint,
                summary=summary,
            )
            fresh = evaluations.last if evaluations.last_step == step else None
            report(kind, evaluation=fresh, checkpoint=checkpoint, summary=summary)
            return result
        finally:
            telemetry.close()


def _save(
    folder: Path,
    config: TrainConfig,
    data: TrainingData,
    world: World,
    *,
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
) -> CheckpointReport:
    """Write a checkpoint on rank 0 while the others wait; return its report (complete on rank 0 only)."""
    started_s = time.perf_counter()
    path, sha256 = checkpoint_folder(folder, step), ""
    if world.is_main:
        _, manifest = save_checkpoint(
            folder,
            step=step,
            config=config,
            data_fingerprint=data.fingerprint,
            world_size=world.world_size,
            model=model,
            optimizer=optimizer,
            state=state,
        )
        sha256 = manifest.sha256
    world.barrier()
    return CheckpointReport(
        step=step,
        tokens=step * config.step_tokens,
        folder=str(path.absolute()),
        manifest_sha256=sha256,
        duration_s=time.perf_counter() - started_s,
    )


def _summary(config: TrainConfig, telemetry: Telemetry, evaluations: _Evaluations, clock: TrainingClock) -> RunSummary:
    """Return the summary of a finished run, without the domain information."""
    size, router = model_size(config.model), telemetry.tail.router
    return RunSummary(
        final_loss=telemetry.tail.loss,
        initial_bits_per_byte=_bits_per_byte(evaluations.initial),
        bits_per_byte=_bits_per_byte(evaluations.last),
        worst_max_violation=router and router.worst_max_violation,
        worst_max_violation_layer=router and router.worst_max_violation_layer,
        min_token_entropy=router and router.min_token_entropy,
        min_load_entropy=router and router.min_load_entropy,
        max_dead_fraction=router and router.max_dead_fraction,
        num_spikes=telemetry.num_spikes,
        tokens_per_s=tokens_per_s(config.num_steps * config.step_tokens, clock.duration_s),
        training_duration_s=clock.duration_s,
        total_parameters=size.total,
        active_parameters=size.active,
        flops_per_token=flops_per_token(config.model, seq_len=config.data.seq_len),
        domain_information=None,
    )


def _bits_per_byte(evaluation: Evaluation) -> dict[str, float]:
    return {domain: figures.bits_per_byte for domain, figures in evaluation.items()}


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    return {domain: figures.model_dump() for domain, figures in evaluation.items()}


def _evaluation_of(plain: Mapping[str, Any]) -> Evaluation:
    return {domain: DomainEvaluation.model_validate(figures) for domain, figures in plain.items()}
