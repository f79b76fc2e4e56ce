"""Foreign packages of our names are told from ours."""

import sys
from pathlib import Path

from api.guard import NAMES, foreign_packages

CHECKOUT = str(Path(__file__).resolve().parents[3])


def test_our_own_packages_are_not_foreign() -> None:
    assert foreign_packages([CHECKOUT, *sys.path]) == []


def test_a_package_of_the_same_name_found_first_is_named(tmp_path: Path) -> None:
    for name in ("kernels", "trainer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')")
    problems = foreign_packages([str(tmp_path), CHECKOUT])
    assert len(problems) == 2
    assert all(str(tmp_path) in problem for problem in problems)


def test_missing_packages_are_named(tmp_path: Path) -> None:
    assert len(foreign_packages([str(tmp_path)])) == len(NAMES)
