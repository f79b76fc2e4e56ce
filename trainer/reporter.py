"""Reporter: how the loop speaks to whoever started the run, and hears that it should stop."""

from pathlib import Path
from typing import Protocol

from trainer.config.run import RunReport
from trainer.telemetry.progress import Progress

STOP_FILE = "stop"
"""Name of the file in the run's folder whose existence asks the run to write a checkpoint and end."""


class Reporter(Protocol):
    """Receives a run's reports. Only rank 0 calls it, except that a failing rank reports its failure."""

    def report(self, report: RunReport) -> None:
        """Deliver one report. May block; nothing the loop computes depends on how long."""
        ...

    def progress(self, progress: Progress) -> None:
        """Take note of how far training is; called at most once a second."""
        ...

    def should_stop(self) -> bool:
        """Return whether the run should write a checkpoint and end after the current step."""
        ...


def stop_requested(folder: Path) -> bool:
    """Return whether someone asked the run in `folder` to stop."""
    return (folder / STOP_FILE).exists()
