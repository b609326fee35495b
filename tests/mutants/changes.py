"""Small wrong changes of a source file, one at a time."""

import ast
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

SWAPS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class Change(NamedTuple):
    """A place in a file and what stands there instead."""

    line: int
    end_line: int
    was: str
    now: str
    source: str  # the whole file, changed


def count(source: str) -> int:
    """How many changes of a file there are.

    >>> count("x = a + 2")
    2
    """
    return sum(len(_others(node)) for node in _places(ast.parse(source)))


def changes(source: str) -> Iterator[Change]:
    """Every change of a file: of operators, comparisons, numbers, flags, `not`.

    Strings, annotations, imports and decorators are left alone.

    >>> [(c.was, c.now) for c in changes("x = a + 2")]
    [('a + 2', 'a - 2'), ('2', '3')]
    """
    tree = ast.parse(source)
    for number, node in enumerate(_places(tree)):
        for attribute, value in _others(node):
            other = copy.deepcopy(tree)
            same = list(_places(other))[number]
            was = ast.unparse(same)
            setattr(same, attribute, value)
            now, whole = ast.unparse(same), ast.unparse(other)
            yield Change(node.lineno, node.end_lineno, was, now, whole)


def _others(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        return [("op", SWAPS[type(node.op)]())]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return [("ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]])]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        if isinstance(node.op, ast.USub):
            return [("op", ast.UAdd())]
        return [("operand", ast.UnaryOp(ast.Not(), copy.deepcopy(node.operand)))]
    if isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        value = node.value
        return [("value", not value if isinstance(value, bool) else value + 1)]
    return []


def _places(tree: Any) -> Iterator[Any]:
    """Nodes that run, in order, without annotations."""
    skipped = (ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Raise)
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, skipped) or node in _unused(tree):
            continue
        yield from ([node] if hasattr(node, "lineno") else [])
        yield from _places(node)


def _unused(node: Any) -> list[Any]:
    found = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [x for x in [*found, *getattr(node, "decorator_list", [])] if x is not None]
