"""On what a benchmark ran: machine, versions, date and commit."""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from trainer.code_state import git_state, package_version
from trainer.environment import device_name

PACKAGES = ("torch", "transformers", "numpy")
CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "benchmarks" / "results"


@dataclass(frozen=True)
class Machine:
    """What a figure depends on besides the code.

    Attributes:
        cpu: the model's name.
        num_cores: cores that the system has.
        load_average: of the last minute, when the run began: processes that ran or wanted to.
        versions: of Python and the packages that matter, absent ones left out.
        date: UTC, ISO 8601.
        commit: of the checkout; ends in "+" where files differ from it; None outside of git.
    """

    cpu: str
    num_cores: int
    load_average: float
    versions: dict[str, str]
    date: str
    commit: str | None


def machine() -> Machine:
    """Returns the machine as it is now."""
    return Machine(
        cpu=device_name(torch.device("cpu")),
        num_cores=os.cpu_count() or 1,
        load_average=round(os.getloadavg()[0], 1),
        versions={
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := package_version(name))},
        },
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
    )


def _commit() -> str | None:
    git = git_state()
    return None if git.commit is None else git.commit[:7] + ("+" if git.dirty else "")
