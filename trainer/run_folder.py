"""The files of a run's folder that say what it is, and the first of them. Torch-free."""

import json
from pathlib import Path

from trainer.config import TrainConfig
from trainer.durable import write_durably

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
PATCH_FILE = "code.patch"
"""How the code differed from its commit, where it did: `git apply` on the commit gives what ran."""
PACKAGES_FILE = "packages.txt"
"""What was installed, a line `name==version` each: as good as a lock where the code was installed without one."""


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write the resolved config and its fingerprint."""
    document = {"config": config.model_dump(mode="json"), "fingerprint": config.fingerprint()}
    write_durably(folder / CONFIG_FILE, json.dumps(document, indent=1).encode())
