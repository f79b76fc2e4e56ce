"""The code that runs: its commit, how it differs from it, files as they were at a commit, packages. Torch-free."""

import hashlib
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("api", "kernels", "orchestrator", "trainer")
"""Folders of a checkout whose files can be loaded by a run, whether git has been told of them or not."""

_DIFF = ("-c", "core.quotepath=off", "diff", "--binary", "--no-ext-diff", "--no-color")
_TIMEOUT_S = 10


class GitState(NamedTuple):
    """The commit of the running code and how its files differ from it; None outside of a checkout."""

    commit: str | None
    patch: bytes | None

    @property
    def dirty(self) -> bool | None:
        """Whether files differ from the commit."""
        return None if self.patch is None else bool(self.patch)

    @property
    def patch_sha256(self) -> str | None:
        """sha256 of the patch; None where there is none."""
        return hashlib.sha256(self.patch).hexdigest() if self.patch else None


COMPUTING_PACKAGES = ("kernels", "trainer")
"""Packages that decide what a run computes."""


@cache
def code_fingerprint() -> str:
    """Return a checksum of the source of the packages that decide what a run computes.

    Asked once per process, as `git_state` is. It needs no checkout: a wheel's files of the same version have the same.
    """
    return fingerprint_of(CHECKOUT)


def fingerprint_of(root: Path) -> str:
    """Return the sha256 of names and contents of all Python files of `COMPUTING_PACKAGES` in `root`."""
    digest = hashlib.sha256()
    for package in COMPUTING_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


@cache
def git_state() -> GitState:
    """Return the commit this process's code came from and how its files differ from it.

    Asked once per process: later changes of the checkout do not change the code that is loaded.
    """
    return state_of(CHECKOUT)


def state_of(checkout: Path) -> GitState:
    """Return the commit of a checkout and the patch that, applied to it, gives its files.

    Changes of tracked files are in the patch, and whole the files in `PACKAGES` that git neither tracks nor ignores.
    """
    commit = _git(checkout, "rev-parse", "HEAD")
    tracked = _git(checkout, *_DIFF, "HEAD")
    if tracked is None:
        return GitState(None if commit is None else commit.decode().strip(), None)
    new = _git(checkout, "ls-files", "--others", "--exclude-standard", "-z", "--", *PACKAGES) or b""
    # Compared with nothing, a file always differs, which git says by status 1.
    added = [
        _git(checkout, *_DIFF, "--no-index", "--", "/dev/null", name, statuses=(1,)) or b""
        for name in sorted(new.decode(errors="surrogateescape").split("\0"))
        if name
    ]
    return GitState(None if commit is None else commit.decode().strip(), tracked + b"".join(added))


def file_at_commit(commit: str | None, name: str) -> bytes | None:
    """Return a file of the checkout at a commit, or as it is now where the commit is not known; None if absent."""
    content = None if commit is None else _git(CHECKOUT, "show", f"{commit}:{name}")
    if content is None and (CHECKOUT / name).is_file():
        content = (CHECKOUT / name).read_bytes()
    return content


def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None where the code runs from a checkout."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def installed_packages() -> tuple[str, ...]:
    """Return what this process can import as `name==version`, sorted: by the names of the `*.dist-info` folders.

    The first of a name counts, as it does for an import.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in sorted(Path(place).glob("*.dist-info")):
            name, _, number = folder.name.removesuffix(".dist-info").partition("-")
            found.setdefault(name.replace("_", "-").lower(), number)
    return tuple(f"{name}=={number}" for name, number in sorted(found.items()))


def _git(checkout: Path, *arguments: str, statuses: tuple[int, ...] = (0,)) -> bytes | None:
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode in statuses else None
