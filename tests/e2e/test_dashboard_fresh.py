"""What is committed of the dashboard is what its source and the OpenAPI document give, byte by byte."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "dashboards"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("npm") is None,
        reason="Node >= 20.19 with npm is not installed: the dashboard cannot be built again",
    ),
]


def npm(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["npm", *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with its packages installed, so that the checkout itself stays as it is."""
    root = tmp_path_factory.mktemp("dashboard")
    shutil.copytree(SOURCE, root / "dashboards", ignore=shutil.ignore_patterns("node_modules"))
    (root / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "openapi.json", root / "docs")
    installed = npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", folder=root / "dashboards")
    if installed.returncode != 0:
        pytest.skip(f"the dashboard's packages cannot be installed here: {installed.stderr.strip()[-300:]}")
    return root


def test_types_are_those_of_the_openapi_document(checkout: Path) -> None:
    generated = npm("run", "gen:api", folder=checkout / "dashboards")
    assert generated.returncode == 0, generated.stderr
    schema = Path("dashboards", "src", "api", "schema.d.ts")
    assert (checkout / schema).read_bytes() == (ROOT / schema).read_bytes(), "run `npm run gen:api` in dashboards/"


def test_unit_tests_of_the_dashboard_pass(checkout: Path) -> None:
    tested = npm("test", folder=checkout / "dashboards")
    assert tested.returncode == 0, tested.stdout[-3000:] + tested.stderr[-1000:]


def test_built_files_are_those_of_the_source(checkout: Path) -> None:
    built = npm("run", "build", folder=checkout / "dashboards")
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-1000:]
    committed, fresh = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (ROOT / "api" / "webui", checkout / "api" / "webui")
    )
    assert committed.keys() == fresh.keys()
    stale = [name for name in committed if committed[name] != fresh[name]]
    assert stale == [], "run `npm run build` in dashboards/ and commit api/webui"
