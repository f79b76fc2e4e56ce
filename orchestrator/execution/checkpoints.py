"""The shelf: which checkpoints a trial keeps, which it resumes from, and how the others are deleted.

A checkpoint counts while its row says `committed`. To delete one, the row goes to `deleting` first and the files
after it, so a row never points to half a checkpoint; files that a crash left in between are swept up when the trial
has ended. Before any is deleted, the bytes of a newer one are read: the last whole one is never deleted.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.spec import ExperimentSpec
from orchestrator.states import is_terminal
from orchestrator.store.records import CheckpointRecord, TrialRecord
from orchestrator.store.session import Database

logger = logging.getLogger(__name__)


class Shelf:
    """The checkpoints of one experiment's trials.

    Args:
        database: of the installation.
        root: the home folder.
        epoch: of the driver.
        spec: of the experiment.
    """

    def __init__(self, database: Database, root: Path, *, epoch: int, spec: ExperimentSpec) -> None:
        self._database = database
        self._root = root
        self._epoch = epoch
        self._spec = spec

    def newest_whole(self, trial_id: str) -> CheckpointRecord | None:
        """The newest checkpoint whose files are all there; damaged newer ones are taken out of use."""
        while True:
            with self._database.read() as work:
                checkpoint = work.checkpoints.newest(trial_id)
            if checkpoint is None or is_whole(self._root / checkpoint.folder, checkpoint.manifest_sha256):
                return checkpoint
            logger.error("checkpoint %s of trial %s is damaged; going back", checkpoint.folder, trial_id)
            self._database.run(lambda work, id=checkpoint.id: work.checkpoints.discard(id, epoch=self._epoch))

    def tidy(self, trial: TrialRecord) -> None:
        """Deletes what the trial no longer needs, see `KeptCheckpoints`."""
        with self._database.read() as work:
            checkpoints = work.checkpoints.of_trial(trial.id)
            pinned = work.forks.pinned(trial.id)
        keep = pinned | kept(self._spec, trial, checkpoints)
        if all(checkpoint.id in keep for checkpoint in checkpoints):
            return
        for checkpoint in reversed(checkpoints):
            keep |= {checkpoint.id}
            if is_whole(self._root / checkpoint.folder, checkpoint.manifest_sha256):
                break
            logger.error("checkpoint %s of trial %s is damaged; keeping an older one", checkpoint.folder, trial.id)
        for checkpoint in checkpoints:
            if checkpoint.id not in keep and self._database.run(
                lambda work, id=checkpoint.id: work.checkpoints.release(id, epoch=self._epoch)
            ):
                shutil.rmtree(self._root / checkpoint.folder, ignore_errors=True)

    def sweep(self, trial: TrialRecord) -> None:
        """Deletes checkpoint folders of an ended trial that no row stands for."""
        if not is_terminal(trial.state):
            return
        self.tidy(trial)
        with self._database.read() as work:
            kept = {self._root / checkpoint.folder for checkpoint in work.checkpoints.of_trial(trial.id)}
            runs = work.runs.of_trial(trial.id)
        for run in runs:
            folder = self._root / run.folder / "checkpoints"
            for path in folder.iterdir() if folder.is_dir() else ():
                if path not in kept:
                    shutil.rmtree(path, ignore_errors=True)


def kept(spec: ExperimentSpec, trial: TrialRecord, checkpoints: Sequence[CheckpointRecord]) -> frozenset[str]:
    """Ids of the checkpoints of a trial that `spec.keep_checkpoints` keeps; those that forks began from aside.

    Args:
        spec: of the experiment.
        trial: whose they are.
        checkpoints: committed, fewest tokens first.
    """
    policy = spec.keep_checkpoints
    keep = {checkpoint.id for checkpoint in checkpoints[-policy.last :]}
    if not is_terminal(trial.state):
        rungs = {rung.tokens for rung in trial.rungs}
        keep |= {checkpoint.id for checkpoint in checkpoints if checkpoint.tokens in rungs}
    sign = 1.0 if spec.objective.direction == "minimize" else -1.0
    measured = [
        (sign * checkpoint.objective, checkpoint.id) for checkpoint in checkpoints if checkpoint.objective is not None
    ]
    if policy.best and measured:
        keep.add(min(measured)[1])
    for tokens in policy.pinned_tokens:
        keep |= set([checkpoint.id for checkpoint in checkpoints if checkpoint.tokens >= tokens][:1])
    return frozenset(keep)


def is_whole(folder: Path, manifest_sha256: str) -> bool:
    """True if the manifest is the one that was committed and every file it names has the bytes it names."""
    try:
        raw = (folder / "manifest.json").read_bytes()
        manifest = json.loads(raw)
        return hashlib.sha256(raw).hexdigest() == manifest_sha256 and all(
            _sha256(folder / name) == file["sha256"] for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
