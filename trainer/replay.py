"""Replay: a recorded run is executed again, and the first thing that does not come out as recorded is named.

Not a second implementation of training: the run goes through `worker.run` into a folder of its own, with as many
workers as it had, from its beginning or from one of its checkpoints, and its telemetry is compared with the recorded
one while it is written. Learning rate, loads, loss and gradient norm of every step have to agree to the last bit, and
at every checkpoint that the recorded run still has, weights and optimizer states.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trainer.bundle import with_start_found
from trainer.checkpoint_manifest import checkpoint_folder, checkpoints_of, read_manifest, verify_checkpoint
from trainer.checkpoint_tensors import MODEL, OPTIMIZER
from trainer.config.run import CheckpointReport, RunReport, RunRequest
from trainer.errors import CheckpointInvalid, EvenloadError
from trainer.local_workers import run_here
from trainer.recorded_run import (
    Difference,
    NotRecorded,
    RecordedRun,
    Steps,
    first_difference,
    open_run,
    read_environment,
    read_steps,
    recorded_range,
)
from trainer.reporter import STOP_FILE
from trainer.telemetry.progress import Progress

logger = logging.getLogger(__name__)

COMPARED_ENVIRONMENT = (
    "git_commit",
    "git_diff_sha256",
    "code_fingerprint",
    "evenload_version",
    "torch_version",
    "python_version",
    "platform",
    "device_name",
    "num_threads",
    "world_size",
    "precision",
    "data_fingerprint",
)
"""What of environment.json can make a run come out differently."""


class ReplayFailed(EvenloadError):
    """The run could not be executed again, so there is no verdict."""


class EnvironmentDifference(NamedTuple):
    """Something about the machine, the code or the data that is not as it was; None where it was not noted."""

    name: str
    recorded: Any
    here: Any


@dataclass(frozen=True)
class Verdict:
    """What a replay found.

    Attributes:
        first_step, last_step: compared, both included; `last_step` is that of the difference if there is one.
        started_from: step of the checkpoint that the replay went on from; None: from the run's beginning.
        num_checkpoints: whose weights and optimizer states were compared.
        difference: the first; None: bit for bit identical.
        environment: in what this machine differs from the recorded one.
    """

    first_step: int
    last_step: int
    started_from: int | None
    num_checkpoints: int
    difference: Difference | None
    environment: tuple[EnvironmentDifference, ...]

    @property
    def identical(self) -> bool:
        """Whether everything came out as recorded."""
        return self.difference is None


def replay(
    folder: Path,
    scratch: Path,
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    cache_folder: Path,
    num_threads: int | None = None,
    num_workers: int | None = None,
    use_gpu: bool | None = None,
    on_environment: Callable[[tuple[EnvironmentDifference, ...]], None] = lambda _: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Verdict:
    """Execute the run in `folder` again and return how it compares.

    Args:
        folder: of the recorded run; only read.
        scratch: existing empty folder for the second execution.
        first_step: the replay goes on from the newest sound checkpoint before this step, and compares from it on. None:
            from the run's beginning and the first step recorded.
        last_step: the last to compare; None: the last recorded.
        cache_folder: where tokenised corpora are kept.
        num_threads: of torch, per worker; None: as many as recorded.
        num_workers: None: as many as recorded, one where they are to be on a GPU. Several run on this machine's CPUs.
        use_gpu: None: as recorded, as far as there is one.
        on_environment: told of the differences of the environments before the first step.
        on_progress: called at most once a second.

    Raises:
        NotRecorded: there is no such run, or no such steps of it.
        ReplayFailed: the run failed where the recorded one did not.
        WorkerLost: one of several workers did.
        OSError: the disk failed.
    """
    recorded = open_run(folder)
    first, last = _range(recorded, first_step, last_step)
    environment = recorded.environment
    start = None if first_step is None else _checkpoint_before(recorded, first)
    was_on_gpu = str(environment.get("device", "cpu")).startswith("cuda")
    on_gpu = (was_on_gpu and torch.cuda.is_available()) if use_gpu is None else use_gpu
    comparison = _Comparison(recorded, scratch, first=first, last=last, on_environment=on_environment)

    def progress(at: Progress) -> None:
        comparison.progressed()
        on_progress(at)

    run_here(
        RunRequest(
            run_id=folder.name,
            # A checkpoint is gone on from under the config it was written with, and never asks for the start.
            config=with_start_found(recorded) if start is None else recorded.config,
            folder=str(scratch),
            resume_from=None if start is None else str(start),
            any_code=True,  # that it is other code is told, and the comparison says what it changes
            stop_at_tokens=last * recorded.config.step_tokens,
            cache_folder=str(cache_folder),
            num_workers=num_workers or (1 if on_gpu else int(environment.get("world_size", 1))),
            use_gpu=on_gpu,
            num_threads=num_threads or int(environment.get("num_threads", torch.get_num_threads())),
        ),
        comparison.report,
        on_progress=progress,
    )
    comparison.conclude()
    return Verdict(
        first_step=first,
        last_step=last if comparison.difference is None else comparison.difference.step,
        started_from=None if start is None else read_manifest(start).step,
        num_checkpoints=comparison.num_checkpoints,
        difference=comparison.difference,
        environment=comparison.environment,
    )


def environment_differences(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[EnvironmentDifference, ...]:
    """Return in which of `COMPARED_ENVIRONMENT` two environments differ; what neither noted does not count."""
    return tuple(
        EnvironmentDifference(name, recorded.get(name), here.get(name))
        for name in COMPARED_ENVIRONMENT
        if recorded.get(name) != here.get(name)
    )


class _Comparison:
    """Follows the second execution and stops it at the first difference."""

    def __init__(
        self,
        recorded: RecordedRun,
        scratch: Path,
        *,
        first: int,
        last: int,
        on_environment: Callable[[tuple[EnvironmentDifference, ...]], None],
    ) -> None:
        self._recorded = recorded
        self._scratch = scratch
        self._next, self._last = first, last
        self._goes_back = recorded.config.loop.spike_policy.kind == "rewind"
        self._newest: Path | None = None
        self._on_environment = on_environment
        self._failure: RunReport | None = None
        self.difference: Difference | None = None
        self.environment: tuple[EnvironmentDifference, ...] = ()
        self.num_checkpoints = 0

    def report(self, report: RunReport) -> None:
        """Take a report of the second execution."""
        if report.kind == "started":
            self.environment = environment_differences(self._recorded.environment, read_environment(self._scratch))
            self._on_environment(self.environment)
        if report.kind == "failed":
            self._failure = report
        if report.checkpoint is not None:
            self._catch_up(report.checkpoint.step)
            self._compare_weights(report.checkpoint)

    def progressed(self) -> None:
        """Compare what telemetry there is, unless a spike may yet undo it; no run goes back past a checkpoint."""
        if not self._goes_back:
            self._catch_up(self._last)

    def _catch_up(self, last: int) -> None:
        last = min(last, self._last)
        if self.difference is not None or self._next > last:
            return
        replayed = read_steps(self._scratch, first=self._next, last=last)
        if replayed.last is None:
            return
        self._note(first_difference(self._recorded_steps(replayed.last), replayed))
        self._next = replayed.last + 1

    def conclude(self) -> None:
        """Compare the rest.

        Raises:
            ReplayFailed: the execution ended before the last step, and not as the recorded run did.
        """
        self._catch_up(self._last)
        if self.difference is None and self._next <= self._last:
            why = "it ended early" if self._failure is None else f"{self._failure.cause}: {self._failure.message}"
            raise ReplayFailed(
                f"the replay came to step {self._next - 1} of {self._last} without a difference and no further ({why})"
            )

    def _recorded_steps(self, last: int) -> Steps:
        return read_steps(self._recorded.folder, first=self._next, last=last)

    def _compare_weights(self, report: CheckpointReport) -> None:
        written = Path(report.folder)
        if not written.is_relative_to(self._scratch) or written == self._newest:
            return  # the one it started from, or one that was reported before
        step = report.step
        there = checkpoint_folder(self._recorded.folder, step)
        if self.difference is None and step <= self._last and there.is_dir():
            try:
                theirs, ours = read_manifest(there), read_manifest(written)
            except CheckpointInvalid as error:
                logger.warning("not compared: %s", error)
            else:
                self.num_checkpoints += 1
                for name in (MODEL, OPTIMIZER):
                    if theirs.files[name] != ours.files[name]:
                        self._note(Difference(step, name, None, theirs.files[name][0], ours.files[name][0]))
        # Compared, and only the newest is ever gone back to: a replay takes no more room than two checkpoints.
        if self._newest is not None:
            shutil.rmtree(self._newest, ignore_errors=True)
        self._newest = written

    def _note(self, difference: Difference | None) -> None:
        if difference is not None and self.difference is None:
            self.difference = difference
            (self._scratch / STOP_FILE).touch()


def _range(recorded: RecordedRun, first_step: int | None, last_step: int | None) -> tuple[int, int]:
    first, last = recorded_range(recorded.folder)
    chosen = (first if first_step is None else first_step, last if last_step is None else last_step)
    if not first <= chosen[0] <= chosen[1] <= last:
        raise NotRecorded(
            f"{recorded.folder} has the steps {first} to {last} on record, asked for were {chosen[0]} to {chosen[1]}"
        )
    return chosen


def _checkpoint_before(recorded: RecordedRun, step: int) -> Path | None:
    """Return the newest sound checkpoint from which `step` is still to come; None: there is none."""
    for path in checkpoints_of(recorded.folder):
        if not (path / MODEL).exists():
            continue  # a bundle's: checksums only
        try:
            manifest = verify_checkpoint(path)
        except CheckpointInvalid as error:
            logger.warning("skipping a checkpoint: %s", error)
            continue
        if manifest.step >= step:
            continue
        if manifest.config_fingerprint == recorded.config.fingerprint():
            return path
        logger.warning("skipping a checkpoint: %s was written with another config than that on record", path)
    return None
