"""Event files beside the telemetry of real runs: live, complete, and the same after a crash."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.store.session import Database, database_url, open_database
from orchestrator.tracking.chunks import columns
from orchestrator.tracking.tensorboard import EventFiles, write_events
from tests.support.event_files import read_events
from tests.support.forwarding import DOCUMENT, the_trial, train
from tests.support.services import fresh_home
from tests.support.sweeps import submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return fresh_home(tmp_path / "home")


@pytest.fixture
def database(root: Path) -> Iterator[Database]:
    opened = open_database(database_url(root))
    yield opened
    opened.close()


def event_file(folder: Path) -> Path:
    """The only event file of a run."""
    (path,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    return path


def curve(path: Path, tag: str) -> list[tuple[int, float]]:
    """Step and value of a tag, in order of the file."""
    return [
        (event.step, value.simple_value)
        for event in read_events(path)
        for value in event.summary.value
        if value.tag == tag
    ]


def test_event_files_follow_every_run_and_are_whole_after_a_crash(database: Database, root: Path) -> None:
    experiment_id = submit(database, DOCUMENT | {"tracking": {"tensorboard": True}})
    train(database, root, experiment_id, kill_after_step=8)
    EventFiles(database, root).round()
    with database.read() as work:
        (first,) = work.runs.of_trial(the_trial(database, experiment_id).id)
    path = event_file(root / first.folder)
    live = path.read_bytes()
    assert [step for step, _ in curve(path, "train/loss")][-1] >= 8

    # Killed after it had appended, before it could note it: what is not noted is written again, to the same bytes.
    (path.parent / "position.json").unlink()
    with path.open("ab") as file:
        file.write(b"half a record")
    write_events(root, first)
    assert path.read_bytes() == live

    train(database, root, experiment_id)
    files = EventFiles(database, root)
    files.round()
    with database.read() as work:
        runs = work.runs.of_trial(the_trial(database, experiment_id).id)
    assert len(runs) == 2
    assert path.read_bytes() == live, "the run that ended has nothing to add"
    second = event_file(root / runs[1].folder)
    table = columns([root / runs[1].folder], "scalars", ["train/loss"])
    losses = np.asarray(table["train/loss"], dtype=np.float32).tolist()
    assert curve(second, "train/loss") == list(zip(table["step"].tolist(), losses, strict=True))
    assert [step for step, _ in curve(second, "router/max_violation/mean")] == table["step"].tolist()
    assert [step for step, _ in curve(second, "eval/loss/all")] == [16, 24]
    assert curve(second, "system/process_memory_usage_megabytes")

    whole = second.read_bytes()
    files.round()
    assert second.read_bytes() == whole


def test_experiments_that_do_not_ask_have_none(database: Database, root: Path) -> None:
    experiment_id = submit(database, DOCUMENT)
    train(database, root, experiment_id, kill_after_step=8)
    EventFiles(database, root).round()
    assert not list(root.glob("experiments/**/tensorboard"))
