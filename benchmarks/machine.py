"""On what a benchmark ran: machine, versions, date and commit."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
        cpu=_cpu(),
        num_cores=os.cpu_count() or 1,
        load_average=round(os.getloadavg()[0], 1),
        versions={
            "python": platform.python_version(),
            **{name: found for name in PACKAGES if (found := _version(name))},
        },
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
    )


def _cpu() -> str:
    described = Path("/proc/cpuinfo")
    if described.exists():
        names = [
            line.partition(":")[2].strip()
            for line in described.read_text().splitlines()
            if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return None
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
