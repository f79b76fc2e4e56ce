"""The shelf: which checkpoints a trial keeps, which it resumes from, and how the others are deleted.

A checkpoint counts while its row says `committed`. To delete one, the row goes to `deleting` first and the files
after it, so a row never points to half a checkpoint; files that a crash left in between are swept up when the trial
has ended. Before any is deleted, the bytes of a newer one are read: the last whole one is never deleted.

Reading a large one takes seconds, which neither the other trials' reports nor the lease can wait: a thread does it.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from orchestrator.errors import Fenced, StoreUnavailable
from orchestrator.spec import ExperimentSpec
from orchestrator.states import is_terminal
from orchestrator.store.records import CheckpointRecord, TrialRecord
from orchestrator.store.session import Database

logger = logging.getLogger(__name__)

LARGE_BYTES = 32 * 2**20
"""Up to here a checkpoint is read at once: a tenth of a second even from a slow disk."""


class Shelf:
    """The checkpoints of one experiment's trials.

    Args:
        database: of the installation.
        root: the home folder.
        epoch: of the driver.
        spec: of the experiment.
        large_bytes: from what size on a checkpoint is read by a thread.
    """

    def __init__(
        self, database: Database, root: Path, *, epoch: int, spec: ExperimentSpec, large_bytes: int = LARGE_BYTES
    ) -> None:
        self._database = database
        self._root = root
        self._epoch = epoch
        self._spec = spec
        self._large_bytes = large_bytes
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._read: dict[str, Future[CheckpointRecord | None]] = {}
        self._tidied: Future[None] | None = None

    def is_read(self, trial_id: str) -> bool:
        """Whether `newest_whole` answers at once. If not, the newest checkpoint is large, and is being read now."""
        if trial_id not in self._read:
            if not self._is_large(trial_id):
                return True
            self._read[trial_id] = self._reader.submit(self._newest_whole, trial_id)
        return self._read[trial_id].done()

    def newest_whole(self, trial_id: str) -> CheckpointRecord | None:
        """The newest checkpoint whose files are all there; damaged newer ones are taken out of use."""
        read = self._read.pop(trial_id, None)
        return self._newest_whole(trial_id) if read is None else read.result()

    def _newest_whole(self, trial_id: str) -> CheckpointRecord | None:
        while True:
            with self._database.read() as work:
                checkpoint = work.checkpoints.newest(trial_id)
            if checkpoint is None or is_whole(self._root / checkpoint.folder, checkpoint.manifest_sha256):
                return checkpoint
            logger.error("checkpoint %s of trial %s is damaged; going back", checkpoint.folder, trial_id)
            self._database.run(lambda work, id=checkpoint.id: work.checkpoints.discard(id, epoch=self._epoch))

    def tidy(self, trial: TrialRecord) -> None:
        """Deletes what the trial no longer needs, see `KeptCheckpoints`; soon, if its checkpoints are large."""
        checkpoints, keep = self._kept(trial)
        if all(checkpoint.id in keep for checkpoint in checkpoints):
            return
        if self._is_large_folder(checkpoints[-1]):
            self._tidied = self._reader.submit(self._tidy_later, trial)
        else:
            self._tidy(trial)

    def _tidy_later(self, trial: TrialRecord) -> None:
        try:
            self._tidy(trial)
        except (Fenced, StoreUnavailable) as error:
            logger.warning("checkpoints of trial %s are tidied up another time: %s", trial.id, error)

    def _tidy(self, trial: TrialRecord) -> None:
        checkpoints, keep = self._kept(trial)
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

    def _kept(self, trial: TrialRecord) -> tuple[tuple[CheckpointRecord, ...], frozenset[str]]:
        """The trial's committed checkpoints, fewest tokens first, and the ids of those that are needed."""
        with self._database.read() as work:
            checkpoints = work.checkpoints.of_trial(trial.id)
            pinned = work.forks.pinned(trial.id) if checkpoints else frozenset()
        return checkpoints, pinned | kept(self._spec, trial, checkpoints)

    def sweep(self, trial: TrialRecord) -> None:
        """Deletes checkpoint folders of an ended trial that no row stands for."""
        if not is_terminal(trial.state):
            return
        if self._tidied is not None:
            wait([self._tidied])
        self._tidy(trial)
        with self._database.read() as work:
            kept = {self._root / checkpoint.folder for checkpoint in work.checkpoints.of_trial(trial.id)}
            runs = work.runs.of_trial(trial.id)
        for run in runs:
            folder = self._root / run.folder / "checkpoints"
            for path in folder.iterdir() if folder.is_dir() else ():
                if path not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    def _is_large(self, trial_id: str) -> bool:
        with self._database.read() as work:
            checkpoint = work.checkpoints.newest(trial_id)
        return checkpoint is not None and self._is_large_folder(checkpoint)

    def _is_large_folder(self, checkpoint: CheckpointRecord) -> bool:
        try:
            return sum(path.stat().st_size for path in (self._root / checkpoint.folder).iterdir()) > self._large_bytes
        except OSError:
            return False  # damaged, which reading it will tell


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
