"""TensorBoard event files beside the telemetry of the experiments that ask for them (`tracking.tensorboard: true`).

    tensorboard --logdir <home>/experiments/<experiment id>

Written by the forwarder from the chunks that training leaves, live and whether MLflow is there or not; nothing of it
happens in the training step. Each run has a file of its own, `<run folder>/tensorboard/events.out.tfevents.*`, with
every step it recorded; a position file beside it says up to where the event file is valid, so that a crash between
the two leads to the same bytes being written again.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from orchestrator.spec import ExperimentSpec
from orchestrator.states import is_terminal
from orchestrator.store.records import RunRecord
from orchestrator.store.session import Database
from orchestrator.tracking import record
from orchestrator.tracking.chunks import Kind, chunks
from orchestrator.tracking.event_file import append_points
from orchestrator.tracking.record import Point
from orchestrator.tracking.series import RunFolder, Source, machine_use

_POSITION_FILE = "position.json"
_PAGE = 100


class _Position(NamedTuple):
    """The event file is valid up to `length` bytes, and has every point of a stream up to its step."""

    length: int
    steps: dict[str, int]


class _Stream(NamedTuple):
    """One sequence of points by step: `points(source, after=, until=)` are those of `after < step <= until`."""

    name: str
    last_step: Callable[[Source], int]
    points: Callable[..., Iterator[Point]]


class EventFiles:
    """The event files of one installation.

    Args:
        database: of the installation.
        root: the home folder.
    """

    def __init__(self, database: Database, root: Path) -> None:
        self._database = database
        self._root = root
        self._open: set[str] = set()
        self._complete: set[str] = set()
        self._seen: set[str] = set()

    def round(self) -> None:
        """Appends what was recorded since the last round. Raises StoreUnavailable."""
        self._find()
        for experiment_id in sorted(self._open):
            with self._database.read() as work:
                is_over = is_terminal(work.experiments.get(experiment_id).state)
                runs = [run for run in work.runs.of_experiment(experiment_id) if run.id not in self._complete]
            # The state was read before the chunks: a run that had ended has no later ones.
            for run in runs:
                write_events(self._root, run)
            self._complete |= {run.id for run in runs if is_terminal(run.state)}
            if is_over:
                self._open.discard(experiment_id)

    def _find(self) -> None:
        """Looks for experiments, newest first, up to a page on which there is none that was not seen before."""
        cursor = None
        while True:
            with self._database.read() as work:
                page = work.experiments.list(limit=_PAGE, cursor=cursor)
            new = [experiment for experiment in page.items if experiment.id not in self._seen]
            self._seen |= {experiment.id for experiment in new}
            self._open |= {
                experiment.id
                for experiment in new
                if ExperimentSpec.model_validate(experiment.spec).tracking.tensorboard
            }
            cursor = page.next_cursor
            if cursor is None or not new:
                return


def write_events(root: Path, run: RunRecord) -> None:
    """Appends to the run's event file what its telemetry has and the file has not."""
    source = Source(id=run.id, runs=(RunFolder(run.id, root / run.folder),))
    folder = root / run.folder / "tensorboard"
    before = _read_position(folder)
    length, steps = before.length, dict(before.steps)
    for stream in _STREAMS:
        after, until = steps.get(stream.name, -1), stream.last_step(source)
        if until > after:
            folder.mkdir(exist_ok=True)
            path = folder / f"events.out.tfevents.{run.created_at_ms // 1000}.evenload"
            length = append_points(path, stream.points(source, after=after, until=until), after_bytes=length)
            steps[stream.name] = until
    if steps != before.steps:
        _write_position(folder, _Position(length, steps))


def _last_of(kind: Kind) -> Callable[[Source], int]:
    return lambda source: max((chunk.last for chunk in chunks(source.folders[0], kind)), default=-1)


def _last_sample(source: Source) -> int:
    return max((sample["step"] for sample in machine_use(source)), default=-1)


_STREAMS = (
    _Stream("scalars", _last_of("scalars"), record.scalar_points),
    _Stream("router", _last_of("router"), record.router_points),
    _Stream("evaluations", _last_of("evaluations"), record.evaluation_points),
    _Stream("probes", _last_of("probes"), record.probe_points),
    _Stream("machine", _last_sample, record.machine_points),
)


def _read_position(folder: Path) -> _Position:
    path = folder / _POSITION_FILE
    return _Position(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else _Position(0, {})


def _write_position(folder: Path, position: _Position) -> None:
    written = folder / f"{_POSITION_FILE}.new"
    written.write_text(json.dumps(position._asdict()), encoding="utf-8")
    written.replace(folder / _POSITION_FILE)
