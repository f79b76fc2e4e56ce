"""A run with all of its workers on this machine and no Ray: this process is rank 0, the others are its children.

They talk by gloo, as the workers that Ray starts on CPUs do, and in the same order, so that a run of several workers
comes out the same, bit for bit.
"""

import multiprocessing
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from trainer.config.run import RunReport, RunRequest
from trainer.errors import EvenloadError
from trainer.telemetry.progress import Progress
from trainer.worker import run
from trainer.world import World

_START_PATIENCE_S = 300.0
"""For a child to load torch, on a machine that does other things, too."""
_END_PATIENCE_S = 5.0


class WorkerLost(EvenloadError):
    """A worker ended without a verdict on the run."""


def run_here(
    request: RunRequest,
    report: Callable[[RunReport], None],
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Execute one run as `trainer.worker.run` does, with `request.num_workers` workers on the CPUs of this machine.

    Returns when all have ended. What is deterministic is reported as `failed`, by one rank or by several, and not
    raised, however many workers there are.

    Raises:
        ValueError: several workers on GPUs.
        WorkerLost: one of several ended without a word, or did not start.
        OSError: the disk failed.
    """
    if request.num_workers == 1:
        return run(request, report, on_progress=on_progress)
    if request.use_gpu:
        raise ValueError(f"num_workers={request.num_workers} with use_gpu=true: only on CPUs are several started here")
    with _Group(request, report) as group:
        run(request, group.report, group.join(), on_progress=on_progress)
    return None


class _Group:
    """The children of one run, gone at the end of a `with` block.

    Swallows what the block raises if a worker has reported why the run failed.
    """

    def __init__(self, request: RunRequest, report: Callable[[RunReport], None]) -> None:
        self._request = request
        self._report = report
        self._has_failed = False
        self._stack = ExitStack()
        self._folder = Path()
        # The end of a pipe is of another class on every platform.
        self._children: list[tuple[BaseProcess, Any]] = []

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="evenload-workers-")))
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self._request.num_workers):
            here, there = context.Pipe()
            arguments = (rank, self._request.model_dump_json(), str(self._folder), there)
            child = context.Process(target=_work, args=arguments, daemon=True)
            child.start()
            there.close()  # so that a child that ends shows as the end of its messages
            self._children.append((child, here))
        return self

    def join(self) -> World:
        """Wait for the children and return rank 0's view of the group."""
        for child, connection in self._children:
            try:
                has_started = connection.poll(_START_PATIENCE_S) and connection.recv()
            except EOFError:
                has_started = False
            if not has_started:
                raise WorkerLost(f"a worker did not start; its process had status {child.exitcode}")
        return _joined(self._folder, rank=0, world_size=self._request.num_workers)

    def report(self, report: RunReport) -> None:
        """Pass on what rank 0 reports."""
        self._has_failed |= report.kind == "failed"
        self._report(report)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if dist.is_initialized():
            dist.destroy_process_group()
        for child, connection in self._children:
            connection.close()
            child.join(_END_PATIENCE_S)
            if child.is_alive():
                child.kill()
                child.join()
        with self._stack:
            for file in sorted(self._folder.glob("failed-*")):
                self.report(RunReport.model_validate_json(file.read_text(encoding="utf-8")))
        if isinstance(error, RuntimeError) and not self._has_failed:
            raise WorkerLost(f"a worker is gone: {error}") from error
        return isinstance(error, Exception) and self._has_failed


def _joined(folder: Path, *, rank: int, world_size: int) -> World:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size)
    return World.of_process_group(torch.device("cpu"))


def _work(rank: int, request: str, folder: str, starter: Any) -> None:
    """What a child executes. Rank 0 speaks for a run that goes well; of one that fails, whoever knows why."""
    parsed = RunRequest.model_validate_json(request)
    starter.send(True)

    def report(report: RunReport) -> None:
        if report.kind == "failed":
            Path(folder, f"failed-{rank}").write_text(report.model_dump_json(), encoding="utf-8")

    run(parsed, report, _joined(Path(folder), rank=rank, world_size=parsed.num_workers))
    dist.destroy_process_group()
