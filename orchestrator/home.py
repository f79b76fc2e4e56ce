"""The home folder: where everything of one installation is kept.

    <home>/evenload.db                 the database (unless EVENLOAD_DATABASE_URL names another)
    <home>/token                       the API's bearer token, 0600
    <home>/tokens/<name>               those of further people, each an owner of experiments
    <home>/cache/tokens/               token shards
    <home>/ray/ mlflow/ logs/          state of the services
    <home>/experiments/<experiment id>/spec.json                      its spec, for whoever reads the folder without us
    <home>/experiments/<experiment id>/trials/<number>/<run id>/      what a run writes

Rows of the database name run and checkpoint folders relative to the home, so that a home can be moved.
"""

import os
from pathlib import Path

SPEC_FILE = "spec.json"


def home() -> Path:
    """The home folder: EVENLOAD_HOME, else ~/.evenload. Created for its owner alone (0700) if it is missing."""
    named = os.environ.get("EVENLOAD_HOME")
    root = Path(named).expanduser() if named else Path.home() / ".evenload"
    root = root.absolute()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root


def database_path(root: Path) -> Path:
    """The SQLite file of the home `root`."""
    return root / "evenload.db"


def token_path(root: Path) -> Path:
    """The file with the API's bearer token."""
    return root / "token"


def tokens_folder(root: Path) -> Path:
    """Files with the bearer tokens of further people, by name."""
    return root / "tokens"


def token_cache_folder(root: Path) -> Path:
    """Where corpora lie as token shards, cut on first use."""
    return root / "cache" / "tokens"


def ray_folder(root: Path) -> Path:
    """State and logs of the local Ray head."""
    return root / "ray"


def mlflow_folder(root: Path) -> Path:
    """The MLflow server's database and artifacts."""
    return root / "mlflow"


def logs_folder(root: Path) -> Path:
    """Logs of the processes of this installation."""
    return root / "logs"


def experiment_folder(experiment_id: str) -> Path:
    """Folder of an experiment, relative to the home."""
    return Path("experiments") / experiment_id


def run_folder(experiment_id: str, trial_number: int, run_id: str) -> Path:
    """Folder of a run, relative to the home. Every run has one of its own, so a superseded run litters only itself."""
    return experiment_folder(experiment_id) / "trials" / f"{trial_number:05d}" / run_id
