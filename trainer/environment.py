"""environment.json: on what a run ran, so that a figure can be traced back; beside it changes of code, and packages."""

import json
import platform
from pathlib import Path

import torch

from trainer.code_state import code_fingerprint, git_state, installed_packages, package_version
from trainer.config.run import StartReport
from trainer.durable import write_durably
from trainer.run_folder import ENVIRONMENT_FILE, PACKAGES_FILE, PATCH_FILE
from trainer.world import World


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
    write_durably(folder / PACKAGES_FILE, "".join(f"{package}\n" for package in installed_packages()).encode())
    document = {
        "git_commit": git.commit,
        "git_dirty": git.dirty,
        "git_diff_sha256": git.patch_sha256,
        "code_fingerprint": code_fingerprint(),
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
