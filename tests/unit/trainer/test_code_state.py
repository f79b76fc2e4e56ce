"""Which code runs: the patch of a checkout, applied to its commit, gives the files that are there."""

import subprocess
import sys
from pathlib import Path

import pytest

from trainer.code_state import fingerprint_of, installed_packages, state_of


def git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", *author, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "trainer").mkdir(parents=True)
    (folder / "trainer" / "loop.py").write_text("one\n")
    (folder / ".gitignore").write_text("*.tmp\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_clean_checkout_has_its_commit_and_no_patch(checkout: Path):
    state = state_of(checkout)
    assert state.commit == git(checkout, "rev-parse", "HEAD")
    assert (state.dirty, state.patch_sha256) == (False, None)


def test_patch_makes_of_the_commit_what_ran(checkout: Path, tmp_path: Path):
    (checkout / "trainer" / "loop.py").write_text("two\n")
    (checkout / "trainer" / "routers").mkdir()
    (checkout / "trainer" / "routers" / "mine \u00e4.py").write_text("new\n")
    (checkout / "trainer" / "weights.bin").write_bytes(bytes(range(256)))
    (checkout / "trainer" / "scratch.tmp").write_text("ignored\n")
    (checkout / "notes.txt").write_text("no code\n")
    state = state_of(checkout)
    assert state.dirty
    assert state.patch is not None

    git(tmp_path, "clone", "-q", str(checkout), "elsewhere")
    (tmp_path / "changes.patch").write_bytes(state.patch)
    git(tmp_path / "elsewhere", "apply", str(tmp_path / "changes.patch"))
    here, there = (
        {path.relative_to(folder): path.read_bytes() for path in (folder / "trainer").rglob("*") if path.is_file()}
        for folder in (checkout, tmp_path / "elsewhere")
    )
    del here[Path("trainer/scratch.tmp")]
    assert there == here
    assert not (tmp_path / "elsewhere" / "notes.txt").exists()
    assert state_of(tmp_path / "elsewhere").patch_sha256 == state.patch_sha256


def test_folder_without_git_has_neither(tmp_path: Path):
    assert state_of(tmp_path) == (None, None)


def test_packages_are_what_an_import_would_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for place, name in (
        ("first", "Some_Package-2.0"),
        ("second", "some_package-1.0"),
        ("second", "other-0.1.dev2+cpu"),
    ):
        (tmp_path / place / f"{name}.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert installed_packages.__wrapped__() == ("other==0.1.dev2+cpu", "some-package==2.0")


def test_fingerprint_is_of_the_code_that_computes_and_of_nothing_else(checkout: Path):
    first = fingerprint_of(checkout)
    for name in ("README.md", "trainer/notes.txt", "api/app.py"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("text\n")
    assert fingerprint_of(checkout) == first
    assert fingerprint_of(checkout) == fingerprint_of(checkout.parent / "checkout"), "wherever it lies"
    (checkout / "trainer" / "loop.py").write_text("two\n")
    changed = fingerprint_of(checkout)
    (checkout / "trainer" / "loop.py").rename(checkout / "trainer" / "other.py")
    renamed = fingerprint_of(checkout)
    (checkout / "kernels").mkdir()
    (checkout / "kernels" / "new.py").touch()
    assert len({first, changed, renamed, fingerprint_of(checkout)}) == 4
