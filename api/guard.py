"""Tells when one of our import names belongs to someone else's package.

Our names are flat because evenload is an application; `kernels` and `trainer` exist on package indexes too, and a
foreign one found first would fail in ways that nobody could make sense of.
"""

from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

NAMES = ("api", "kernels", "orchestrator", "trainer")


def foreign_packages(search_path: list[str] | None = None) -> list[str]:
    """One sentence for each of our names that resolves to another folder than ours, or to none. Imports nothing.

    Args:
        search_path: where to look; by default as an import would, which also finds an editable install.
    """
    ours = Path(__file__).resolve().parent.parent
    problems: list[str] = []
    for name in NAMES:
        spec = find_spec(name) if search_path is None else PathFinder.find_spec(name, search_path)
        if spec is None or spec.origin is None:
            problems.append(f"there is no package {name!r} on the path; install evenload again (in a checkout: make)")
            continue
        folder = Path(spec.origin).resolve().parent
        if folder != ours / name:
            problems.append(
                f"the name {name!r} belongs to {folder}, not to evenload in {ours}; uninstall that package, "
                "or use an environment of evenload's own"
            )
    return problems
