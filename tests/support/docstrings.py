"""The examples in docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import ModuleType


def blocks(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Each ``Example::`` block of a module, with the name of what it belongs to."""
    source = inspect.getsource(module)
    # Each worker of pytest comes by here, and most modules have none.
    for node in ast.walk(ast.parse(source)) if "Example::" in source else ():
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Module)):
            for match in re.finditer(r"^Example::\n\n((?:(?: +.*)?\n?)+)", ast.get_docstring(node) or "", re.MULTILINE):
                yield getattr(node, "name", "module"), textwrap.dedent(match[1])
