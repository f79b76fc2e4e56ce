"""Constraints between the values of a configuration: a comparison of numbers and dotted paths, and nothing else.

    model.moe.top_k <= model.moe.num_experts
    2 * model.dim >= model.moe.hidden_dim * model.moe.top_k
    model.moe.balancing[0].coefficient < 0.1

A path is looked up in the configuration at the point, searched or not. Where a point has no such path, or null there,
the constraint says nothing about it. Python's parser reads the text; only the kinds of nodes below are ever evaluated.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_NODES = 100
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
ALLOWED = "comparisons (< <= > >= == !=), + - * / // %, numbers, texts in quotes, and dotted paths"


@dataclass(frozen=True)
class Constraint:
    """A parsed constraint.

    Attributes:
        text: as it was written.
        paths: the dotted paths in it, by name.
    """

    text: str
    paths: tuple[str, ...]
    _tree: ast.Compare

    def violation(self, document: Mapping[str, Any]) -> str | None:
        """Why the configuration violates the constraint, None if it does not."""
        values = {path: value for path in self.paths if (value := _looked_up(document, path)) is not None}
        if len(values) < len(self.paths):
            return None
        shown = ", ".join(f"{path}={value!r}" for path, value in values.items())
        try:
            left = _evaluated(self._tree.left, values)
            for compare, node in zip(self._tree.ops, self._tree.comparators, strict=True):
                right = _evaluated(node, values)
                if not _COMPARISONS[type(compare)](left, right):
                    return f"the constraint {self.text!r} does not hold: {shown}"
                left = right
        except (TypeError, ArithmeticError) as error:
            return f"the constraint {self.text!r} cannot be evaluated ({error}): {shown}"
        return None


def parse_constraint(text: str) -> Constraint:
    """The constraint that a text says.

    Raises:
        ValueError: it is not a comparison, or holds something else than `ALLOWED`.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:200]!r} is not a comparison: {getattr(error, 'msg', error)}") from error
    if not isinstance(tree, ast.Compare):
        raise ValueError(f"{text[:200]!r} is not a comparison; write two expressions with < <= > >= == or !=")
    if sum(1 for _ in ast.walk(tree)) > _MAX_NODES:
        raise ValueError(f"{text[:200]!r} has more than {_MAX_NODES} parts; split it into several constraints")
    for comparison in tree.ops:
        if type(comparison) not in _COMPARISONS:
            raise ValueError(f"{text[:200]!r} compares with {type(comparison).__name__}; allowed: {ALLOWED}")
    paths: set[str] = set()
    for node in (tree.left, *tree.comparators):
        _check(node, text, paths)
    if not paths:
        raise ValueError(f"{text[:200]!r} names no path, so it is the same for every point")
    return Constraint(text.strip(), tuple(sorted(paths)), tree)


def _check(node: ast.expr, text: str, paths: set[str]) -> None:
    """Adds the paths in an expression to `paths`; raises ValueError for what is not allowed in one."""
    path = _path(node)
    if path is not None:
        paths.add(path)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        _check(node.left, text, paths)
        _check(node.right, text, paths)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        _check(node.operand, text, paths)
    elif not (isinstance(node, ast.Constant) and isinstance(node.value, int | float | str)):
        raise ValueError(f"{text[:200]!r} holds {ast.unparse(node)[:80]!r}; allowed: {ALLOWED}")


def _path(node: ast.expr) -> str | None:
    """The dotted path that a node spells, None if it is something else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        outer = _path(node.value)
        return None if outer is None else f"{outer}.{node.attr}"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and type(node.slice.value) is int:
        outer = _path(node.value)
        return None if outer is None else f"{outer}.{node.slice.value}"
    return None


def _looked_up(document: Any, path: str) -> Any:
    """The value at a dotted path, None if there is none."""
    for part in path.split("."):
        if isinstance(document, Mapping):
            document = document.get(part)
        elif isinstance(document, list) and part.isdigit() and int(part) < len(document):
            document = document[int(part)]
        else:
            return None
    return document


def _evaluated(node: ast.expr, values: Mapping[str, Any]) -> Any:
    path = _path(node)
    if path is not None:
        return values[path]
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        operand = _number(_evaluated(node.operand, values))
        return -operand if isinstance(node.op, ast.USub) else operand
    assert isinstance(node, ast.BinOp)
    left, right = _number(_evaluated(node.left, values)), _number(_evaluated(node.right, values))
    return _ARITHMETIC[type(node.op)](left, right)


def _number(value: Any) -> int | float:
    if isinstance(value, int | float):
        return value
    raise TypeError(f"{str(value)[:80]!r} is not a number")
