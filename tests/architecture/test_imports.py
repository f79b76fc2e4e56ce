"""The structure still holds: who imports what, whose packages answer to our names. (lint-imports checks the chain.)"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "kernels", "orchestrator", "trainer")
HEAVY = ("torch", "ray", "mlflow", "optuna", "triton")


def source_files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((CHECKOUT / package).rglob("*.py"))


def imported_roots(path: Path) -> set[str]:
    """Top-level names of every import of a file, wherever in the file it stands."""
    roots: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            roots.add(node.module.split(".")[0])
    return roots


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import api.app",
        "import api.cli",
        "import api.client",
        "import trainer.config",
        "import trainer.model.size",
        "import orchestrator.admission",
        "import orchestrator.estimate",
    ],
)
def test_light_modules_load_nothing_heavy(statement: str) -> None:
    assert not loaded_after(statement) & set(HEAVY)


def test_importing_kernels_does_not_need_triton() -> None:
    assert "triton" not in loaded_after(
        "import sys; sys.modules['triton'] = None; import kernels; del sys.modules['triton']"
    )


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("ray", "orchestrator/execution/"),
        ("mlflow", "orchestrator/tracking/"),
        ("optuna", "orchestrator/search/"),
        ("fastapi", "api/"),
    ],
)
def test_a_library_is_imported_in_one_place(library: str, home: str) -> None:
    users = {path.relative_to(CHECKOUT).as_posix() for path in source_files() if library in imported_roots(path)}
    assert users, f"nothing imports {library}"
    assert all(user.startswith(home) for user in users), users


def test_mlflow_is_imported_in_one_file() -> None:
    users = {path.relative_to(CHECKOUT).as_posix() for path in source_files() if "mlflow" in imported_roots(path)}
    assert users == {"orchestrator/tracking/remote.py"}


def test_triton_is_imported_by_fused_kernels_alone() -> None:
    users = {path.relative_to(CHECKOUT).as_posix() for path in source_files() if "triton" in imported_roots(path)}
    assert users
    assert all(user.startswith("kernels/") and user.endswith("/fused.py") for user in users), users


def test_no_pickle_in_our_source() -> None:
    banned = {"pickle", "cloudpickle", "dill", "shelve", "joblib"}
    users = {path.relative_to(CHECKOUT).as_posix() for path in source_files() if imported_roots(path) & banned}
    calls = {
        path.relative_to(CHECKOUT).as_posix()
        for path in source_files()
        if "torch.load(" in path.read_text() or "torch.save(" in path.read_text()
    }
    assert not users | calls


def test_our_names_resolve_to_this_checkout() -> None:
    code = f"import importlib; print([importlib.import_module(name).__file__ for name in {PACKAGES!r}])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    files = ast.literal_eval(result.stdout)
    assert all(Path(file).is_relative_to(CHECKOUT) for file in files), files


@pytest.mark.parametrize("name", ["kernels", "trainer"])
def test_a_foreign_package_of_our_name_is_detected(name: str, tmp_path: Path) -> None:
    # Hugging Face's `kernels` and Coqui's `trainer` exist on the package index.
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from api.cli import main; main(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=CHECKOUT)
    assert result.returncode == 2
    assert name in result.stderr
    assert str(tmp_path) in result.stderr


def test_docker_is_never_a_package() -> None:
    # A folder on the path named like a library; with an __init__ it would hide the real one.
    assert not (CHECKOUT / "docker" / "__init__.py").exists()


def test_light_packages_have_empty_inits() -> None:
    for package in ("api", "orchestrator", "trainer", "trainer/model", "orchestrator/store"):
        assert (CHECKOUT / package / "__init__.py").read_text().strip() == "", package
