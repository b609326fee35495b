"""Statements of a file, and which of them ran."""

import ast
from collections.abc import Iterator


def statements(source: str) -> dict[int, set[int]]:
    """By first line: the lines of each statement, less those of statements in it.

    Docstrings, and names that stand alone, are none.

    >>> statements('def f(x):\\n    "Says."\\n    if x:\\n        return (1 +\\n  2)')
    {1: {1, 2}, 3: {3}, 4: {4, 5}}
    """
    found = {}
    for node in _statements(ast.parse(source)):
        inner = [range(x.lineno, x.end_lineno + 1) for x in _children(node)]
        first = min([node.lineno, *(x.lineno for x in _decorators(node))])
        lines = set(range(first, node.end_lineno + 1)).difference(*inner)
        found[node.lineno] = lines
    return found


def _statements(node: ast.AST) -> Iterator[ast.stmt]:
    for child in _children(node):
        yield child
        yield from _statements(child)


def _children(node: ast.AST) -> list[ast.stmt]:
    """The statements directly in a node."""
    found = []
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt):
            found += _children(child) if _holds_statements(child) else []
        elif not (isinstance(child, ast.Expr) and _says_nothing(child.value)):
            found.append(child)
    return found


def _holds_statements(node: ast.AST) -> bool:
    return isinstance(node, ast.ExceptHandler | ast.match_case)


def _says_nothing(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant | ast.Name)


def _decorators(node: ast.AST) -> list[ast.expr]:
    return getattr(node, "decorator_list", [])
