"""environment.json and config.json: what a run ran, on what, so that a figure can be traced back."""

import hashlib
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
PATCH_FILE = "code.patch"
"""How the code differed from its commit, where it did: `git apply` on the commit gives what ran."""

_CHECKOUT = Path(__file__).resolve().parent.parent


class GitState(NamedTuple):
    """The commit of the running code and how its tracked files differ from it; None outside of a checkout."""

    commit: str | None
    patch: bytes | None

    @property
    def dirty(self) -> bool | None:
        """Whether tracked files differ from the commit."""
        return None if self.patch is None else bool(self.patch)

    @property
    def patch_sha256(self) -> str | None:
        """sha256 of the patch; None where there is none."""
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write the resolved config and its fingerprint."""
    document = {"config": config.model_dump(mode="json"), "fingerprint": config.fingerprint()}
    write_durably(folder / CONFIG_FILE, json.dumps(document, indent=1).encode())


def write_environment(
    folder: Path, *, world: World, data_fingerprint: str, precision: str, start: StartReport | None
) -> None:
    """Write what the run runs on; `precision` says in what it computes there (`Precision.description`), `start` which
    weights it began with. Where the code differs from its commit, the difference is written beside it."""
    git = git_state()
    if git.patch:
        write_durably(folder / PATCH_FILE, git.patch)
    else:
        (folder / PATCH_FILE).unlink(missing_ok=True)
    document = {
        "git_commit": git.commit,
        "git_dirty": git.dirty,
        "git_diff_sha256": git.patch_sha256,
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
    """Return the commit this process's code came from and how its files differ from it.

    Asked once per process: later changes of the checkout do not change the code that is loaded.
    """
    commit = _git("rev-parse", "HEAD")
    return GitState(
        commit=None if commit is None else commit.decode().strip(),
        patch=_git("-c", "core.quotepath=off", "diff", "--binary", "--no-ext-diff", "--no-color", "HEAD"),
    )


def file_at_commit(commit: str | None, name: str) -> bytes | None:
    """Return a file of the checkout at a commit, or as it is now where the commit is not known; None if absent."""
    content = None if commit is None else _git("show", f"{commit}:{name}")
    if content is None and (_CHECKOUT / name).is_file():
        content = (_CHECKOUT / name).read_bytes()
    return content


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


def _git(*arguments: str) -> bytes | None:
    if not (_CHECKOUT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(_CHECKOUT), *arguments], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
