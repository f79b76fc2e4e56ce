"""A run is found by its folder or by its id in the home, without a server."""

from pathlib import Path
from typing import NoReturn

import pytest

from api.trained import NothingTrained, spec_option, trained_folder, with_first_run_found, with_run_found
from orchestrator.home import run_folder


def no_client() -> NoReturn:
    raise AssertionError("no server is asked for this name")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert trained_folder(str(tmp_path), root=tmp_path / "home", client=no_client) == tmp_path


def test_the_id_of_a_run_is_found_in_the_home(tmp_path: Path) -> None:
    folder = tmp_path / run_folder("exp_1", 3, "run_7")
    folder.mkdir(parents=True)
    assert trained_folder("run_7", root=tmp_path, client=no_client) == folder


@pytest.mark.parametrize("name", ["no/such/folder", "*", "a b", "run_8", "misspelt"])
def test_what_cannot_be_an_id_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(NothingTrained, match="there is no folder"):
        trained_folder(name, root=tmp_path, client=no_client)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--hf", "--run", "a", "--out", "b"], ["--hf", "--run", "<a>", "--out", "b"]),
        (["--run=a", "--out", "a"], ["--run=<a>", "--out", "a"]),
        (["--help"], ["--help"]),
        (["--run"], ["--run"]),
    ],
)
def test_only_the_run_is_replaced(given: list[str], expected: list[str]) -> None:
    assert with_run_found(given, lambda name: Path(f"<{name}>")) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a", "--from", "3"], ["<a>", "--from", "3"]),
        (["--from", "3", "--json", "a", "b"], ["--from", "3", "--json", "<a>", "b"]),
        (["--from=3", "a"], ["--from=3", "<a>"]),
        (["--json"], ["--json"]),
    ],
)
def test_only_the_first_argument_that_is_no_option_is_replaced(given: list[str], expected: list[str]) -> None:
    assert with_first_run_found(given, lambda name: Path(f"<{name}>"), flags=("--json",)) == expected


def test_spec_that_an_experiment_left_goes_into_the_bundles_of_its_runs(tmp_path: Path) -> None:
    folder = tmp_path / run_folder("exp_1", 3, "run_7")
    folder.mkdir(parents=True)
    assert spec_option([str(folder)]) == ()
    spec = tmp_path / "experiments" / "exp_1" / "spec.json"
    spec.write_text("{}")
    assert spec_option(["--json", str(folder)]) == ("--spec", str(spec))
    assert spec_option([str(folder), "--spec", "mine.json"]) == ()
