"""environment.json and config.json: what a run ran, on what, so that a figure can be traced back."""

import json
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from trainer.config import TrainConfig
from trainer.config.run import StartReport
from trainer.durable import write_durably
from trainer.world import World

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"

_CHECKOUT = Path(__file__).resolve().parent.parent


class GitState(NamedTuple):
    """The commit of the running code; None outside of a checkout."""

    commit: str | None
    dirty: bool | None


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write the resolved config and its fingerprint."""
    document = {"config": config.model_dump(mode="json"), "fingerprint": config.fingerprint()}
    write_durably(folder / CONFIG_FILE, json.dumps(document, indent=1).encode())


def write_environment(
    folder: Path, *, world: World, data_fingerprint: str, precision: str, start: StartReport | None
) -> None:
    """Write what the run runs on; `precision` says in what it computes there (`Precision.description`), `start` which
    weights it began with."""
    git = git_state()
    document = {
        "git_commit": git.commit,
        "git_dirty": git.dirty,
        "evenload_version": package_version("evenload"),
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "platform": platform.platform(),
        "device": str(world.device),
        "device_name": device_name(world.device),
        "num_threads": torch.get_num_threads(),
        "world_size": world.world_size,
        "precision": precision,
        "data_fingerprint": data_fingerprint,
        "start": None if start is None else start.model_dump(mode="json"),
    }
    write_durably(folder / ENVIRONMENT_FILE, json.dumps(document, indent=1).encode())


@cache
def git_state() -> GitState:
    """Return the commit this process's code came from and whether files differ from it.

    Asked once per process: later changes of the checkout do not change the code that is loaded.
    """
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    return GitState(commit=commit, dirty=None if status is None else bool(status))


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None where the code runs from a checkout."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """Return the model name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    if not (_CHECKOUT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(_CHECKOUT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
