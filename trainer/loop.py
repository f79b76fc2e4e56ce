"""THE training loop: every run, on one worker or many, fresh or resumed, goes through `train`.

What a step computes is a function of (config, step) alone: data are found by index, nothing depends on the clock or on
how long a report takes. So a run that is killed and resumed from any of its checkpoints gives, on the CPU with the same
number of workers and threads, the same losses, loads and weights to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.config import TrainConfig
from trainer.config.run import CheckpointReport, RunReport, RunSummary
from trainer.milestones import Milestones
from trainer.random_state import seed_everything
from trainer.reporter import Reporter
from trainer.training import Evaluation, Training
from trainer.world import World


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        kind: `finished` with the whole budget trained, or `stopped` before.
        stopped_by: the rule of `stop_when` that ended the run, in words; None where none did.
        step, tokens: how far it came.
        evaluation: of the last step; None if it was not evaluated.
        checkpoint: of the last step.
        summary: of a finished run, on rank 0.
    """

    kind: Literal["finished", "stopped"]
    stopped_by: str | None
    step: int
    tokens: int
    evaluation: Evaluation | None
    checkpoint: CheckpointReport
    summary: RunSummary | None


def train(
    config: TrainConfig,
    *,
    folder: Path,
    reporter: Reporter,
    world: World,
    cache_folder: Path,
    start_root: Path | None = None,
    resume_from: Path | None = None,
    any_code: bool = False,
    rung_tokens: Sequence[int] = (),
    stop_at_tokens: int | None = None,
    rung_seconds: Sequence[float] = (),
    first_timed_rung: int = 0,
    stop_at_timed_rung: int | None = None,
) -> TrainResult:
    """Train the model of `config` and return how it ended.

    Reports `started`; `progress` with the evaluation before the first step, and at every evaluation, checkpoint and
    rung; then `finished` or `stopped`. A run that resumes exactly at a rung reports it first: the run before it may
    have been killed between its checkpoint and its report. A run that a rule of the config stops is evaluated and
    checkpointed where telemetry came to the host next; resumed from there, it stops at once.

    Args:
        config: of the run.
        folder: the run's folder, existing; written by rank 0.
        reporter: told what happens, asked whether to stop. May block.
        world: this worker among the others.
        cache_folder: where tokenised corpora are kept.
        start_root: what `config.start.path` is relative and confined to; None takes any path.
        resume_from: checkpoint to continue from, in this folder or in that of an earlier run of the trial.
        any_code: continue from it even if other code wrote it.
        rung_tokens: ascending training tokens at which to evaluate, checkpoint and report a rung.
        stop_at_tokens: training tokens to stop at, with a checkpoint.
        rung_seconds: ascending seconds of training at which to do as at `rung_tokens`; with one worker only, since
            several would have to agree on the time.
        first_timed_rung: the first of them that the trial has not reported.
        stop_at_timed_rung: the one of them to stop at, with a checkpoint.

    Raises:
        TrainingDiverged: the loss or the gradient norm is not finite.
        CheckpointInvalid, ResumeMismatch: `resume_from` cannot be continued from.
        DataInvalid: the data do not match their manifest.
        StartInvalid, NotImportable: there are no weights to start from at `config.start`, or not the ones it means.
        ValueError: the batch cannot be divided over the workers.
    """
    milestones = Milestones(
        config,
        rung_tokens=rung_tokens,
        stop_at_tokens=stop_at_tokens,
        rung_seconds=rung_seconds,
        first_timed_rung=first_timed_rung,
        stop_at_timed_rung=stop_at_timed_rung,
    )
    with seed_everything(config.seed + world.rank, world.device):
        training = Training(
            config,
            folder=folder,
            world=world,
            cache_folder=cache_folder,
            start_root=start_root,
            resume_from=resume_from,
            any_code=any_code,
            on_progress=reporter.progress,
        )
        telemetry = training.telemetry

        def report(
            kind: Literal["started", "progress", "finished", "stopped"],
            *,
            rung: int | None = None,
            evaluation: Evaluation | None = None,
            checkpoint: CheckpointReport | None = None,
            summary: RunSummary | None = None,
            stopped_by: str | None = None,
        ) -> None:
            if world.is_main:
                with training.clock.excluded():
                    reporter.report(
                        RunReport(
                            kind=kind,
                            step=training.step,
                            tokens=training.tokens,
                            rung=rung,
                            evaluation=None if evaluation is None else dict(evaluation),
                            checkpoint=checkpoint,
                            summary=summary,
                            cause=None if stopped_by is None else "stop_rule",
                            message=stopped_by,
                        )
                    )

        try:
            report("started")
            milestone = milestones.at(training.step, duration_s=training.clock.duration_s)
            if training.step == 0:
                report("progress", evaluation=training.evaluate())
            for rung in milestone.rungs:
                report("progress", rung=rung, evaluation=training.evaluate(), checkpoint=training.save())
                milestones.reported(rung)

            while not (milestone.end or milestone.stop or telemetry.stopped_by):
                # Several workers can agree on stopping only where they wait for the device anyway.
                may_stop = world.world_size == 1 or telemetry.is_drained
                if may_stop and world.any(reporter.should_stop()):
                    break
                training.advance()
                milestone = milestones.at(training.step, duration_s=training.clock.duration_s)
                if telemetry.drain_due(training.step) or milestone.evaluate or milestone.checkpoint:
                    telemetry.drain()
                    if training.rewind_if_due():
                        milestone = milestones.at(training.step, duration_s=training.clock.duration_s)
                        continue  # what is due at this step was done when the run came here first
                    telemetry.write_if_due()
                evaluation = training.evaluate() if milestone.evaluate else None
                checkpoint = training.save() if milestone.checkpoint else None
                for rung in milestone.rungs:
                    report("progress", rung=rung, evaluation=evaluation, checkpoint=checkpoint)
                    milestones.reported(rung)
                if not (milestone.rungs or milestone.end or milestone.stop) and (evaluation or checkpoint):
                    report("progress", evaluation=evaluation, checkpoint=checkpoint)

            telemetry.drain()
            training.rewind_if_due()
            stopped_by = None if milestone.end else telemetry.stopped_by
            if milestone.end or stopped_by:
                training.evaluate()
            result = TrainResult(
                kind="finished" if milestone.end else "stopped",
                stopped_by=stopped_by,
                step=training.step,
                tokens=training.tokens,
                checkpoint=training.save(),
                evaluation=training.evaluation_here,
                summary=training.summary() if milestone.end and world.is_main else None,
            )
            telemetry.close()
            report(
                result.kind,
                evaluation=result.evaluation,
                checkpoint=result.checkpoint,
                summary=result.summary,
                stopped_by=stopped_by,
            )
            return result
        finally:
            telemetry.close()
