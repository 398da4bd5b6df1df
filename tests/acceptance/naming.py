"""Which tests name which rows, read from the docstrings of test functions and of the classes that hold them."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

__all__ = ["named_numbers", "naming_tests"]

_NUMBERS = re.compile(r"(?<![A-Za-z])A-(\d{3})(?: to A-(\d{3}))?(?!\d)")


def named_numbers(text: str) -> list[str]:
    """The rows that a text names, in its order: `A-113`, and all of `A-251 to A-256`."""
    return [
        f"A-{number:03}"
        for first, last in _NUMBERS.findall(text)
        for number in range(int(first), int(last or first) + 1)
    ]


def naming_tests(folder: Path) -> dict[str, list[str]]:
    """For each row that a test below `folder` names, the tests as pytest names them, in order."""
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for name, docstring in _tests(tree):
            for number in dict.fromkeys(named_numbers(docstring)):
                found.setdefault(number, []).append(f"{file.relative_to(folder.parent).as_posix()}::{name}")
    return found


def _tests(tree: ast.Module | ast.If) -> Iterator[tuple[str, str]]:
    """The tests of a module, and the classes that have some, with their docstrings."""
    for node in tree.body:
        if isinstance(node, ast.If):
            yield from _tests(node)
        elif _is_test(node):
            yield node.name, ast.get_docstring(node) or ""
        elif isinstance(node, ast.ClassDef):
            tests = [member for member in node.body if _is_test(member)]
            if tests or node.name.startswith("Test"):
                yield node.name, ast.get_docstring(node) or ""
            for test in tests:
                yield f"{node.name}::{test.name}", ast.get_docstring(test) or ""


def _is_test(node: ast.stmt) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
