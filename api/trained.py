"""Where the weights of a run lie, by what people know it as: a folder, the id of a run, the id of a trial."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from api.client import Client
from orchestrator.home import SPEC_FILE, run_folder
from trainer.errors import EvenloadError

CHECKPOINTS = "checkpoints/step-*"
_ID = re.compile(r"[A-Za-z0-9_-]+")


class NothingTrained(EvenloadError):
    """There is no run of that name on this machine, or it has no checkpoint."""


def trained_folder(name: str, *, root: Path, client: Callable[[], Client]) -> Path:
    """Returns the folder of a run.

    Args:
        name: an existing folder; else the id of a run in the home; else the id of a trial, which the server knows, of
            whose runs it is the newest with a checkpoint.
        root: the home, where runs are kept.
        client: opens a client; only for the id of a trial.

    Raises:
        NothingTrained: no such run is here, or none with a checkpoint.
        ClientError: the server does not answer, or knows no such trial.
    """
    path = Path(name)
    if path.exists():
        return path
    if not _ID.fullmatch(name):
        raise NothingTrained(
            f"there is no folder {name}; give a run's folder, a checkpoint, or the id of a run or trial"
        )
    for folder in root.glob(f"experiments/*/trials/*/{name}"):
        return folder
    if not name.startswith("trl_"):
        raise NothingTrained(
            f"there is no folder {name} and no run {name} in {root}; give a run's folder, a checkpoint, or the id of a "
            "run or trial"
        )
    with client() as connection:
        trial = connection.trial(name)
        runs = sorted(connection.runs(name).items, key=lambda run: run.number, reverse=True)
    for run in runs:
        folder = root / run_folder(trial.experiment_id, trial.number, run.id)
        if any(folder.glob(CHECKPOINTS)):
            return folder
    raise NothingTrained(
        f"none of the {len(runs)} runs of trial {name} has a checkpoint in {root}; train it further, or give the "
        "folder if it is elsewhere"
    )


def with_run_found(arguments: Sequence[str], found: Callable[[str], Path]) -> list[str]:
    """Returns the arguments with the value of `--run` replaced by the folder that `found` gives for it."""
    given = list(arguments)
    for index, argument in enumerate(given):
        if argument == "--run" and index + 1 < len(given):
            given[index + 1] = str(found(given[index + 1]))
            break
        if argument.startswith("--run="):
            given[index] = f"--run={found(argument.removeprefix('--run='))}"
            break
    return given


def with_first_run_found(arguments: Sequence[str], found: Callable[[str], Path], *, flags: Sequence[str]) -> list[str]:
    """Returns the arguments with the first that is no option replaced by the folder that `found` gives for it.

    Args:
        flags: the options that take no value; any other `--option` is followed by one.
    """
    given = list(arguments)
    is_value = False
    for index, argument in enumerate(given):
        if is_value:
            is_value = False
        elif argument.startswith("-"):
            is_value = argument not in flags and "=" not in argument
        else:
            given[index] = str(found(argument))
            break
    return given


def spec_option(arguments: Sequence[str]) -> tuple[str, ...]:
    """Returns `--spec FILE` if a run of a home is among the arguments, whose experiment left its spec; else nothing."""
    if "--spec" in arguments:
        return ()
    for argument in arguments:
        path = Path(argument)
        if not argument.startswith("-") and path.is_dir() and len(path.absolute().parents) > 2:
            spec = path.absolute().parents[2] / SPEC_FILE
            if spec.is_file():
                return ("--spec", str(spec))
    return ()
