"""Prints a module's public names for cog, which puts them into docs/api.md: ``make docs``.

From the docstrings, as Markdown: so the page reads the same on GitHub, on the site and in llms-full.txt.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

#: A longer signature has a line for each parameter.
_WIDTH = 100

#: What functions hand out, and no caller makes.
_HANDED_OUT = ("Messages", "Subscriber", "AsyncSubscriber")


def module(name: str) -> None:
    """Print the public names of a module: those in ``__all__``, or else what it defines, with their methods."""
    found = importlib.import_module(name)
    own = [public for public, thing in vars(found).items() if getattr(thing, "__module__", "") == name]
    for public in getattr(found, "__all__", own):
        thing = getattr(found, public)
        _print(f"### `{public}`", _signature(thing), _docstring(thing))
        if inspect.isclass(thing):
            # What a method of a generic base class returns, this class has chosen.
            chosen = getattr(thing.__dict__.get("__orig_bases__", [None])[0], "__args__", (None,))[-1]
            for method in _methods(thing):
                signature = _signature(method).replace("SubscriberT", getattr(chosen, "__name__", "SubscriberT"))
                _print(f"#### `{public}.{method.__name__}`", signature, _docstring(method))


def _print(*parts: str) -> None:
    for part in filter(None, parts):
        print(f"{part}\n")


def _methods(kind: type) -> Iterator[Callable[..., Any]]:
    """The public methods of a class in the order of their lines, and then those of our base classes."""
    for base in kind.__mro__:
        if base.__module__.startswith("datasette_pubsub."):
            for name, function in vars(base).items():
                if inspect.isfunction(function) and name[0] != "_" and getattr(kind, name) is function:
                    yield function


def _docstring(thing: Any) -> str:
    """As Markdown; empty for a class whose docstring Python has made."""
    text = thing.__doc__ if not inspect.isclass(thing) else vars(thing).get("__doc__")
    return "" if not text or text.startswith(f"{thing.__name__}(") else as_markdown(inspect.cleandoc(text))


def as_markdown(text: str) -> str:
    """A docstring with Markdown's marks: names become code, an example becomes a block.

    >>> as_markdown("Raises :class:`~.core.errors.PubsubError` for ``None``.")
    'Raises `PubsubError` for `None`.'
    """
    text = re.sub(r":(?:class|func|meth|mod):`[~.]*(?:[a-z_]+\.)*(\w[\w.]*)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"^:ivar (\w+): ", r"- `\1`: ", text, flags=re.MULTILINE)
    text = re.sub(
        r"^Example::\n\n((?:(?: +.*)?\n?)+)", lambda block: _code(textwrap.dedent(block[1])), text, flags=re.M
    )
    return re.sub(r"^>>> (?:.+\n?)+", lambda block: _code(block[0]), text, flags=re.M).rstrip()


def _code(text: str) -> str:
    return f"```python\n{text.strip()}\n```\n"


def _signature(thing: Any) -> str:
    """How to call it, as its source has it; empty for what callers do not make, and for plain errors."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    if isinstance(node, ast.ClassDef):
        head, end = f"class {node.name}", ""
        made = vars(thing).get("__init__")
        if inspect.isfunction(made) and made.__code__.co_filename != "<string>":
            parameters = _parameters(_function(made).args, made.__globals__)
        else:
            fields = [ast.unparse(each).replace("'", '"') for each in node.body if isinstance(each, ast.AnnAssign)]
            named = any("kw_only=True" in ast.unparse(each) for each in node.decorator_list)
            parameters = ["*", *fields] if named else fields
        if not parameters or node.name in _HANDED_OUT:
            return ""
    else:
        node = _function(thing)
        assert node.returns is not None
        word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        decorators = [f"@{ast.unparse(each)}\n" for each in node.decorator_list]
        head, end = f"{''.join(decorators)}{word} {node.name}", f" -> {_text(node.returns)}"
        parameters = _parameters(node.args, inspect.unwrap(thing).__globals__)
    code = f"{head}({', '.join(parameters)}){end}"
    if len(code.splitlines()[-1]) > _WIDTH:
        code = f"{head}(\n" + "".join(f"    {each},\n" for each in parameters) + f"){end}"
    return _code(code).strip()


def _function(function: Any) -> ast.FunctionDef | ast.AsyncFunctionDef:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    return node


def _parameters(arguments: ast.arguments, names: dict[str, Any]) -> list[str]:
    """A caller's parameters as they stand in the source; of a default that has a name, the value."""

    def written(argument: ast.arg, default: ast.expr | None = None) -> str:
        text = f"{argument.arg}: {_text(argument.annotation)}" if argument.annotation else argument.arg
        if isinstance(default, ast.Name):
            return f"{text} = {names[default.id]!r}"
        return text if default is None else f"{text} = {'...' if isinstance(default, ast.Lambda) else _text(default)}"

    first = [*arguments.posonlyargs, *arguments.args]
    defaults = [*[None] * (len(first) - len(arguments.defaults)), *arguments.defaults]
    found = [written(each, default) for each, default in zip(first, defaults, strict=True) if each.arg != "self"]
    if arguments.vararg:
        found.append(f"*{written(arguments.vararg)}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += [written(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*found, f"**{written(arguments.kwarg)}"] if arguments.kwarg else found


def _text(node: ast.AST) -> str:
    return ast.unparse(node).replace("'", '"')
