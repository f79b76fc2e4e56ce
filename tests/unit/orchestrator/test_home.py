"""The home folder."""

import stat
from pathlib import Path

import pytest

from orchestrator.home import home, run_folder


def test_home_is_made_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENLOAD_HOME", str(tmp_path / "deep" / "home"))
    root = home()
    assert root == tmp_path / "deep" / "home"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert home() == root


def test_home_is_in_the_users_folder_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVENLOAD_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".evenload"


def test_run_folder_is_relative_and_sorts_by_trial() -> None:
    assert run_folder("exp_1", 7, "run_2").as_posix() == "experiments/exp_1/trials/00007/run_2"
