"""Where on this machine the path of a start leads."""

from pathlib import Path

from trainer.config.start import PathSection
from trainer.interop.errors import StartInvalid


def start_folder(config: PathSection, *, root: Path | None) -> Path:
    """Return the folder at `config.path`.

    Args:
        config: of the start.
        root: what the path is relative and confined to; None takes any.

    Raises:
        StartInvalid: the path is absolute and must not be, or no folder is there.
    """
    if root is not None and config.is_absolute:
        raise StartInvalid(
            f"start.path={config.path} is absolute, and a run of a service starts from what is in its home, {root}; "
            "put the weights there and give the path from there"
        )
    path = Path(config.path) if root is None else root / config.path
    if not path.is_dir():
        raise StartInvalid(
            f"start.path={config.path} is no folder on this machine ({path.absolute()}); every worker must see the "
            "weights there"
        )
    return path


def recorded_start_folder(config: PathSection, run_folder: Path) -> Path | None:
    """Return the folder that a run in `run_folder` began from; None if it is gone.

    The home that the path of a service's run is relative to lies above the run's folder.
    """
    roots = (*run_folder.absolute().parents, Path.cwd())
    return next((path for path in (root / config.path for root in roots) if path.is_dir()), None)
