"""What a process of a run executes: threads, device, folder, the loop, and the verdict on whatever went wrong."""

import gc
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from trainer.config.run import RunReport, RunRequest
from trainer.errors import DataInvalid, EvenloadError, OutOfMemory, TrainingDiverged
from trainer.host_memory import keep_freed_memory
from trainer.loop import train
from trainer.reporter import stop_requested
from trainer.run_folder import write_config
from trainer.telemetry.progress import Progress, read_progress
from trainer.world import World

logger = logging.getLogger(__name__)

Cause = Literal["diverged", "out_of_memory", "data_invalid", "error"]

NUM_FRAMES = 4
"""Innermost frames of an unexpected error that go into its report."""


def run(
    request: RunRequest,
    report: Callable[[RunReport], None],
    world: World | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Execute one run, from its first report to its last. May be called again in the same process.

    Deterministic failures (diverged, out of memory, bad data, errors in code or config) become a report of kind
    `failed`. With several workers the failing one then raises as well, so that whoever started the group takes the
    others down.

    Args:
        request: what to run.
        report: called on rank 0, and on a failing rank; may block.
        world: this worker among the others; None takes the process group if `num_workers` asks for one.
        on_progress: called at most once a second on rank 0.

    Raises:
        OSError: the disk failed. Not deterministic: the run counts as lost and may be tried again.
        RuntimeError: another worker is gone. Likewise.
    """
    folder = Path(request.folder)
    teller = _Teller(report, folder, on_progress)
    if not request.use_gpu:
        keep_freed_memory()
    with _threads(request):
        try:
            world = world or _world(request)
            folder.mkdir(parents=True, exist_ok=True)
            if world.is_main:
                write_config(folder, request.config)
            train(
                request.config,
                folder=folder,
                reporter=teller,
                world=world,
                cache_folder=Path(request.cache_folder),
                start_root=None if request.start_root is None else Path(request.start_root),
                resume_from=None if request.resume_from is None else Path(request.resume_from),
                any_code=request.any_code,
                rung_tokens=request.rung_tokens,
                stop_at_tokens=request.stop_at_tokens,
                rung_seconds=request.rung_seconds,
                first_timed_rung=request.first_timed_rung,
                stop_at_timed_rung=request.stop_at_timed_rung,
            )
        except Exception as error:
            if teller.broken or _is_infrastructure(error) or _is_torn_down(world):
                raise
            cause, message = classify(error)
            logger.error("run failed", extra={"run_id": request.run_id, "cause": cause}, exc_info=error)
            step, tokens = _last_step(folder)
            report(RunReport(kind="failed", step=step, tokens=tokens, cause=cause, message=message))
            if request.num_workers > 1:
                raise
        finally:
            if request.use_gpu:
                # Reference cycles keep tensors until the collector happens to run; the next run needs the memory.
                gc.collect()
                torch.cuda.empty_cache()


def classify(error: Exception) -> tuple[Cause, str]:
    """Return the cause of a deterministic failure and a message for people."""
    if isinstance(error, TrainingDiverged):
        return "diverged", str(error)
    if isinstance(error, DataInvalid):
        return "data_invalid", str(error)
    if _is_out_of_memory(error):
        advice = "lower loop.micro_batch_size or the model's size"
        return "out_of_memory", f"{str(error).splitlines()[0] if str(error) else 'out of memory'}; {advice}"
    if isinstance(error, EvenloadError):
        return "error", f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)[-NUM_FRAMES:]
    where = "\n".join(f"  {Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames)
    return "error", f"{type(error).__name__}: {error}\n{where}"


class _Teller:
    """The reporter of a worker: the caller's function, and the stop file in the run's folder."""

    def __init__(
        self, report: Callable[[RunReport], None], folder: Path, on_progress: Callable[[Progress], None] | None
    ) -> None:
        self._report = report
        self._folder = folder
        self._on_progress = on_progress
        self.broken = False
        """Whether the caller's function raised: then no verdict about the run can be delivered, or is known."""

    def report(self, report: RunReport) -> None:
        try:
            self._report(report)
        except BaseException:
            self.broken = True
            raise

    def progress(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)

    def should_stop(self) -> bool:
        return stop_requested(self._folder)


@contextmanager
def _threads(request: RunRequest) -> Iterator[None]:
    """Use the request's number of threads, and deterministic algorithms on the CPU; put the process back as it was."""
    # Any: the type checker does not see this property of the module's class.
    fills: Any = torch.utils.deterministic
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), fills.fill_uninitialized_memory)
    torch.set_num_threads(request.num_threads)
    if not request.use_gpu:
        torch.use_deterministic_algorithms(True)
        # Filling costs a pass over every new tensor and serves debugging only.
        fills.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        fills.fill_uninitialized_memory = before[2]


def _world(request: RunRequest) -> World:
    if request.use_gpu and not torch.cuda.is_available():
        raise ValueError("use_gpu=true, but this process sees no CUDA device; set resources.gpus_per_worker to 0")
    device = torch.device("cuda", torch.cuda.current_device()) if request.use_gpu else torch.device("cpu")
    world = World.of_process_group(device) if request.num_workers > 1 else World(device=device)
    if world.world_size != request.num_workers:
        raise ValueError(f"num_workers={request.num_workers}, but the process group has {world.world_size}")
    return world


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, OutOfMemory | torch.OutOfMemoryError | MemoryError):
        return True
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _is_infrastructure(error: Exception) -> bool:
    """Whether the disk or another worker failed, rather than this run."""
    if isinstance(error, OSError | dist.DistError):
        return True
    # gloo raises plain RuntimeErrors, e.g. "[.../gloo/transport/tcp/pair.cc:547] Connection closed by peer".
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def _is_torn_down(world: World | None) -> bool:
    """Whether somebody took the process group away under several workers, as Ray Train does with those that are left
    when one is gone: whatever is raised then says nothing about the run."""
    return world is not None and world.world_size > 1 and not dist.is_initialized()


def _last_step(folder: Path) -> tuple[int, int]:
    """Return the last step and tokens that the run recorded; zeros before the first."""
    progress = read_progress(folder)
    return (0, 0) if progress is None else (progress.step, progress.tokens)
