"""An error whose text names an option says it as data, too: programs read ``limit``, and not the text."""

from __future__ import annotations

import ast
import re
from dataclasses import fields

from places import ROOT

from datasette_pubsub.core import errors
from datasette_pubsub.core.settings import Settings

#: Options that are numbers; what is true or false limits nothing.
OPTIONS = {field.name for field in fields(Settings) if type(field.default) in (int, float)}
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}


def raised() -> dict[str, bool]:
    """Each error in the code that names an option in brackets, by its place: whether it has a ``limit``."""
    found = {}
    for path in (ROOT / "datasette_pubsub").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in KINDS:
                continue
            text = "".join(ast.unparse(argument) for argument in node.args)
            named = OPTIONS & set(re.findall(r"\((\w+)\)", text)) or "option})" in text
            if named:
                found[f"{path.name}:{node.lineno}"] = any(keyword.arg == "limit" for keyword in node.keywords)
    return found


def test_an_error_that_names_an_option_has_it_as_its_limit() -> None:
    found = raised()
    assert len(found) > 10
    assert [place for place, has in found.items() if not has] == []
