"""Forking: from a checkpoint of a run and the values that differ to an experiment of one trial that goes on from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.admission import Admitted, admit
from orchestrator.capacity import Capacity
from orchestrator.errors import SpecProblem, SpecRejected
from orchestrator.screening import pointer, shown
from orchestrator.store.records import CheckpointRecord, Submission
from orchestrator.store.work import Work
from trainer.config import TrainConfig
from trainer.config.fork import FORKABLE, ForkRefused, fork_config
from trainer.config.start import ForkStartConfig

_INHERITED = ("objective", "resources", "keep_checkpoints", "max_retries", "seed")
"""What the fork's experiment takes over from that of the run."""

_MAX_NAME = 120


@dataclass(frozen=True, kw_only=True)
class PlannedFork:
    """A fork that can be submitted.

    Attributes:
        admitted: the spec of its experiment.
        checkpoint: what it goes on from.
        changes: dotted path -> value that differs.
    """

    admitted: Admitted
    checkpoint: CheckpointRecord
    changes: dict[str, Any]


def plan_fork(
    work: Work,
    run_id: str,
    *,
    step: int,
    changes: Mapping[str, Any],
    name: str | None,
    capacity: Capacity | None,
) -> PlannedFork:
    """Returns the fork of a run at a step.

    Args:
        work: to read from.
        run_id: the run; checkpoints of earlier runs of its trial are its past, and count.
        step: of a checkpoint that is kept.
        changes: dotted path into the trial's configuration -> value.
        name: of the new experiment; None derives one.
        capacity: what the cluster holds, None if that is not known.

    Raises:
        NotFound: there is no such run.
        SpecRejected: there is no checkpoint of that step (`/step`), a value is not allowed or cannot be changed in a
            fork (`/set/<path>`), or the experiment could not run.
    """
    run = work.runs.get(run_id)
    trial = work.trials.get(run.trial_id)
    checkpoint = _checkpoint(work, run_id, step)
    assert trial.config is not None, "a trial that ran has a configuration"
    # Relative to the home, as the start of every spec.
    start = ForkStartConfig(path=str(checkpoint.folder), sha256=checkpoint.manifest_sha256, step=checkpoint.step)
    try:
        config = fork_config(TrainConfig.model_validate(trial.config), changes, start=start)
    except ForkRefused as error:
        raise SpecRejected(
            [
                SpecProblem(
                    pointer=pointer(("set", problem.path)),
                    code="not_forkable",
                    message=problem.message,
                    given=shown(changes.get(problem.path)),
                    allowed=", ".join(FORKABLE),
                )
                for problem in error.problems
            ]
        ) from error
    parent = work.experiments.get(run.experiment_id)
    document = {field: parent.spec[field] for field in _INHERITED if field in parent.spec} | {
        "name": (name or f"{parent.name}, trial {trial.number} from step {step}")[:_MAX_NAME],
        "description": f"Fork of run {run_id} at step {step}: {_in_words(changes)}.",
        "base": config.model_dump(mode="json"),
        "num_trials": 1,
    }
    return PlannedFork(admitted=admit(document, capacity=capacity), checkpoint=checkpoint, changes=dict(changes))


def submit_fork(
    work: Work, planned: PlannedFork, *, key: str | None, fingerprint: str, owner: str = "local"
) -> Submission:
    """Queues a planned fork, and pins its checkpoint.

    Args:
        work: of the transaction.
        planned: by `plan_fork`, possibly a while ago.
        key, fingerprint, owner: as for `experiments.submit`.

    Raises:
        IdempotencyKeyReused: see `experiments.submit`.
        SpecRejected: the checkpoint was deleted meanwhile.
    """
    # The driver of the run deletes checkpoints under the same lock.
    work.experiments.lock(work.runs.get(planned.checkpoint.run_id).experiment_id)
    submission = work.experiments.submit(
        planned.admitted.spec,
        document=planned.admitted.document,
        warnings=planned.admitted.warnings,
        key=key,
        fingerprint=fingerprint,
        owner=owner,
    )
    if submission.replayed:
        return submission
    if work.checkpoints.get(planned.checkpoint.id).state != "committed":
        raise SpecRejected([_no_checkpoint(work, planned.checkpoint.trial_id, planned.checkpoint.step)])
    work.forks.add(submission.experiment.id, planned.checkpoint, changes=planned.changes)
    return submission


def _checkpoint(work: Work, run_id: str, step: int) -> CheckpointRecord:
    run = work.runs.get(run_id)
    past = {other.id for other in work.runs.of_trial(run.trial_id) if other.number <= run.number}
    at_step = [
        checkpoint
        for checkpoint in work.checkpoints.of_trial(run.trial_id)
        if checkpoint.step == step and checkpoint.run_id in past
    ]
    if not at_step:
        raise SpecRejected([_no_checkpoint(work, run.trial_id, step)])
    return at_step[-1]


def _no_checkpoint(work: Work, trial_id: str, step: int) -> SpecProblem:
    steps = sorted({checkpoint.step for checkpoint in work.checkpoints.of_trial(trial_id)})
    there = ", ".join(map(str, steps)) or "none"
    return SpecProblem(
        pointer="/step",
        code="no_checkpoint",
        message=f"no checkpoint of step {step} is kept; there are those of: {there}. keep_checkpoints in a spec "
        "says which are kept",
        given=step,
        allowed=there,
    )


def _in_words(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} = {value}" for path, value in changes.items()) or "nothing changed"
