"""Names and habits that conventions.md asks for and a tool can check."""

import ast
import re
import tomllib
from pathlib import Path

from trainer.metrics.catalog import METRICS

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("api", "kernels", "orchestrator", "trainer")
SOURCES = [path for package in PACKAGES for path in sorted((CHECKOUT / package).rglob("*.py"))]


def test_modules_are_named_for_their_concept() -> None:
    drawers = re.compile(r"(^|_)(utils?|helpers?|common|misc|managers?|base2|new)($|_)")
    assert not [path for path in SOURCES if drawers.search(path.stem)]


def test_source_is_ascii() -> None:
    offenders = [path.relative_to(CHECKOUT).as_posix() for path in SOURCES if not path.read_text().isascii()]
    assert not offenders


def test_every_todo_names_what_ends_it() -> None:
    todo = re.compile(r"\b(TODO|FIXME|XXX)\b(?!(\(#\d+\))|(: \S+[<>=]))")
    offenders = [
        f"{path.relative_to(CHECKOUT)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if todo.search(line)
    ]
    assert not offenders


def test_type_ignores_say_which_and_why() -> None:
    bare = re.compile(r"#\s*(type|pyright):\s*ignore(?!\[)")
    offenders = [path.relative_to(CHECKOUT).as_posix() for path in SOURCES if bare.search(path.read_text())]
    assert not offenders


def test_public_functions_and_classes_have_docstrings() -> None:
    missing = []
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None and not _says_enough_by_itself(node):
                missing.append(f"{path.relative_to(CHECKOUT)}:{node.lineno} {node.name}")
    assert not missing


def _says_enough_by_itself(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Enums of plain names, tables and migration steps."""
    bases = {ast.unparse(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()
    return bool(bases & {"StrEnum", "Base", "DeclarativeBase", "TypedDict"}) or node.name in {"upgrade", "downgrade"}


def test_metric_names_are_group_and_snake_case() -> None:
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9_]+", name) for name in METRICS)


def test_the_lock_pins_exactly() -> None:
    lines = [line for line in (CHECKOUT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    names = {line.split("==")[0].lower() for line in lines}
    assert not [name for name in names if name.startswith(("nvidia", "cuda"))]


def test_no_package_index_may_take_us() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "evenload"
    assert "Private :: Do Not Upload" in project["classifiers"]
