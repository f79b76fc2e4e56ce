"""The shelf: whatever is deleted or damaged, and whenever, a whole checkpoint of the trial is left."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.execution.checkpoints import Shelf, is_whole
from orchestrator.spec import ExperimentSpec
from orchestrator.states import TrialState
from orchestrator.store.records import CheckpointRecord, RunRecord
from orchestrator.store.session import Database
from tests.support.specs import experiment_spec
from tests.support.stores import claimed, proposed, started
from trainer.checkpoint_manifest import read_manifest, write_manifest


class Trial:
    """A trial with a live run that commits small checkpoints."""

    def __init__(self, database: Database, root: Path, spec: ExperimentSpec) -> None:
        self.database, self.root = database, root
        experiment_id, self.epoch = claimed(database)
        self.id = proposed(database, experiment_id, self.epoch).id
        self.run: RunRecord = started(database, self.id, self.epoch)
        self.shelf = Shelf(database, root, epoch=self.epoch, spec=spec)

    def commit(self, step: int, *, objective: float | None = None) -> Path:
        folder = Path(self.run.folder) / "checkpoints" / f"step-{step:08d}"
        (self.root / folder).mkdir(parents=True)
        (self.root / folder / "model.safetensors").write_bytes(bytes([step % 256]) * 100)
        facts = {"step": step, "tokens": step, "config_fingerprint": "", "data_fingerprint": ""}
        facts |= {"world_size": 1, "num_threads": 1, "torch_version": ""}
        write_manifest(self.root / folder, files=["model.safetensors"], facts=facts)
        with self.database.transaction() as work:
            work.checkpoints.commit(
                self.run.id,
                epoch=self.epoch,
                step=step,
                tokens=step,
                folder=folder.as_posix(),
                manifest_sha256=read_manifest(self.root / folder).sha256,
                objective=objective,
            )
        return self.root / folder

    def tidy(self) -> None:
        with self.database.read() as work:
            trial = work.trials.get(self.id)
        self.shelf.tidy(trial)

    def committed(self) -> tuple[CheckpointRecord, ...]:
        with self.database.read() as work:
            return work.checkpoints.of_trial(self.id)

    def on_disk(self) -> list[int]:
        folder = self.root / self.run.folder / "checkpoints"
        return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def damage(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.fixture
def trial(database: Database, tmp_path: Path) -> Trial:
    return Trial(database, tmp_path, experiment_spec(keep_checkpoints={"last": 2, "best": True, "pinned_tokens": [3]}))


def test_last_best_and_pinned_stay(trial: Trial):
    for step, objective in enumerate([5.0, 1.0, 3.0, 4.0, 2.0, 3.5, None], start=1):
        trial.commit(step, objective=objective)
        trial.tidy()
    assert trial.on_disk() == [2, 3, 6, 7]
    assert [checkpoint.step for checkpoint in trial.committed()] == [2, 3, 6, 7]


def test_I6_damaged_newest_lets_no_older_whole_one_be_deleted(database: Database, tmp_path: Path):
    trial = Trial(database, tmp_path, experiment_spec())
    trial.commit(1)
    for step in (2, 3):
        damage(trial.commit(step))
    trial.tidy()
    assert trial.on_disk() == [1, 2, 3]
    newest = trial.shelf.newest_whole(trial.id)
    assert newest is not None
    assert newest.step == 1
    trial.commit(4)
    trial.tidy()
    assert [checkpoint.step for checkpoint in trial.committed()] == [4]


@pytest.mark.parametrize("seed", range(4))
def test_I6_whatever_happens_there_is_a_whole_one_if_any_was_whole(trial: Trial, seed: int):
    chosen = random.Random(seed)
    whole: set[str] = set()
    for step in range(1, 25):
        folder = trial.commit(step, objective=chosen.random())
        whole.add(folder.name)
        if chosen.random() < 0.4:
            victim = chosen.choice(trial.committed())
            if len(whole) > 1 or Path(victim.folder).name not in whole:
                damage(trial.root / victim.folder)
                whole.discard(Path(victim.folder).name)
        trial.tidy()
        whole &= {Path(checkpoint.folder).name for checkpoint in trial.committed()}
        assert whole, f"seed {seed}, step {step}: the last whole checkpoint was deleted"
        if chosen.random() < 0.3:
            newest = trial.shelf.newest_whole(trial.id)
            assert newest is not None
            assert is_whole(trial.root / newest.folder, newest.manifest_sha256)
            assert newest.step == max(int(name.removeprefix("step-")) for name in whole)


def test_large_checkpoints_are_read_by_a_thread_and_found_as_small_ones_are(database: Database, tmp_path: Path):
    trial = Trial(database, tmp_path, experiment_spec())
    trial.shelf = Shelf(database, tmp_path, epoch=trial.epoch, spec=experiment_spec(), large_bytes=50)
    assert trial.shelf.is_read(trial.id), "there is nothing to read yet"
    assert trial.shelf.newest_whole(trial.id) is None
    for step in (1, 2, 3):
        trial.commit(step)
    damage(tmp_path / trial.committed()[-1].folder)
    # It is asked for again and again, and the answer is there once the thread has read two checkpoints.
    while not trial.shelf.is_read(trial.id):
        pass
    newest = trial.shelf.newest_whole(trial.id)
    assert newest is not None
    assert newest.step == 2
    trial.tidy()
    with database.read() as work:
        record = work.trials.get(trial.id)
    trial.shelf.sweep(replace(record, state=TrialState.COMPLETED))
    assert [checkpoint.step for checkpoint in trial.committed()] == [2]
    assert trial.on_disk() == [2]


def test_checkpoint_without_a_newer_one_is_not_released(trial: Trial):
    trial.commit(1)
    (only,) = trial.committed()
    with trial.database.transaction() as work:
        assert not work.checkpoints.release(only.id, epoch=trial.epoch)
    assert [checkpoint.step for checkpoint in trial.committed()] == [1]
