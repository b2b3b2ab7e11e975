"""Makes the expressions of broadcasts harmless: evaluating one never raises, so it never makes a program's write fail.

An expression may call the functions in :data:`FUNCTIONS`, which exist in every SQLite version that broadcasts support.
A function that raises for some values gets a guard, which turns these values into NULL. An expression that cannot be
guarded is refused; the error names the field and the function, and says how to write it. This module runs no SQL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..core.errors import InvalidArgument
from ..storage.quoting import identifier

#: The most bytes of all columns in an expression that builds text; with more, the expression is NULL. A channel has at
#: most 255 bytes, and conditions compare short texts.
COLUMN_BYTES = 10_000

#: The most bytes that an expression may build in the worst case. SQLite raises at its limit, which is a billion by
#: default, and which programs may lower to this.
BUILT_BYTES = 1_000_000

#: The longest expression with its guards, in characters: a guard repeats what it guards.
GUARDED_CHARACTERS = 20_000

#: The widest field in the format of a printf(), in characters.
PRINTF_WIDTH = 1_000

#: The functions that never raise, or that get a guard.
FUNCTIONS = frozenset({
    "abs", "char", "coalesce", "date", "datetime", "format", "hex", "ifnull", "iif", "instr", "json",
    "json_array_length", "json_extract", "json_type", "json_valid", "julianday", "length", "likelihood",
    "likely", "lower", "ltrim", "max", "min", "nullif", "printf", "quote", "random", "replace", "round",
    "rtrim", "sign", "strftime", "substr", "substring", "time", "trim", "typeof", "unicode", "unixepoch",
    "unlikely", "upper",
})  # fmt: skip

#: Those that raise if the first argument is not JSON.
_OF_JSON = frozenset({"json", "json_array_length", "json_extract", "json_type"})

#: Those that build a text which may be longer than their arguments.
_BUILDERS = frozenset(
    {"char", "format", "hex", "lower", "ltrim", "printf", "quote", "replace", "rtrim", "strftime", "trim", "upper"}
)

#: Words that may stand before a bracket without calling a function.
_KEYWORDS = frozenset({
    "and", "as", "between", "case", "cast", "collate", "distinct", "else", "end", "escape", "exists", "from",
    "glob", "in", "is", "isnull", "like", "match", "not", "notnull", "null", "or", "regexp", "then", "when",
})  # fmt: skip

_COLLATIONS = frozenset({"binary", "nocase", "rtrim"})

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
    |(?P<text>'(?:[^']|'')*')
    |(?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<word>[^\W\d][\w$]*)
    |(?P<number>(?:\d[\w.]*|\.\d[\w.]*)(?:(?<=[eE])[+-]\d+)?)
    |(?P<other>->>|->|\|\||<<|>>|<=|>=|<>|==|!=|.)
    """,
    re.VERBOSE | re.DOTALL,
)

#: JSON paths that every SQLite accepts, and labels that -> and ->> accept instead.
_PATH = re.compile(r'\$(?:\.(?:[^.\["\\]+|"[^"\\]*")|\[(?:\d{1,9}|\#(?:-\d{1,9})?)\])*')
_LABEL = re.compile(r'[^"\\$\[][^"\\]*')

#: The directives of a printf(), without "*", which takes its width from a value.
_DIRECTIVE = re.compile(r"%[-+ #0,!]*(\d*)(?:\.(\d*))?(?:ll?)?[a-zA-Z%]")


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of an expression: its kind, its text, and the most bytes that its value may have."""

    kind: str
    text: str
    size: int = 0


def harmless(expression: str, field: str, columns: Iterable[str], rows: tuple[str, ...] = ()) -> str:
    """The expression with the guards that it needs, or unchanged if it needs none.

    ``columns`` are the names of the table's columns. ``rows`` are the prefixes
    of columns in the expression (NEW, OLD); without them, columns have no prefix.
    Raises :class:`InvalidArgument`, naming ``field``, if it could still raise.
    """
    return _Expression(expression, field, {name.lower(): name for name in columns}, rows).guarded()


class _Expression:
    def __init__(self, text: str, field: str, columns: dict[str, str], rows: tuple[str, ...]) -> None:
        self._field = field
        self._columns = columns
        self._rows = {row.lower() for row in rows}
        self._tokens: list[_Part] = [_Part(str(m.lastgroup), m.group()) for m in _TOKEN.finditer(text)]
        self._at = 0
        #: Whether the expression builds text that may be longer than any column.
        self._builds = False
        #: The columns that the expression names, as SQL, in their order.
        self._named: dict[str, None] = {}

    def guarded(self) -> str:
        text, size = self._join(self._parts())
        if self._at < len(self._tokens):
            raise self._refused("must be one SQL expression")
        if self._builds and size > BUILT_BYTES:
            raise self._refused(f"the text that it builds could have more than {BUILT_BYTES} bytes")
        if self._builds and self._named:
            total = " + ".join(f"coalesce(length(CAST({name} AS BLOB)), 0)" for name in self._named)
            text = f"CASE WHEN {total} <= {COLUMN_BYTES} THEN {text} END"
        if len(text) > GUARDED_CHARACTERS:
            raise self._refused("functions of JSON are nested too deeply in it")
        return text

    def _refused(self, why: str) -> InvalidArgument:
        return InvalidArgument(f"{self._field}: {why}")

    # -- reading ------------------------------------------------------------

    def _peek(self, skip: int = 0) -> _Part:
        """The next token that is not a space, after skipping ``skip`` such tokens."""
        for token in self._tokens[self._at :]:
            if token.kind != "space":
                if not skip:
                    return token
                skip -= 1
        return _Part("end", "")

    def _take(self) -> _Part:
        """Consume the next token that is not a space."""
        while self._tokens[self._at].kind == "space":
            self._at += 1
        self._at += 1
        return self._tokens[self._at - 1]

    def _parts(self) -> list[_Part]:
        """The parts up to the end, a comma or a closing bracket."""
        parts: list[_Part] = []
        while self._at < len(self._tokens) and self._tokens[self._at].text not in (",", ")"):
            token = self._tokens[self._at]
            self._at += 1
            word = token.text.lower() if token.kind == "word" else ""
            behind_dot = bool(parts) and parts[-1].text == "."
            if token.text == "(":
                parts.append(self._group())
            elif token.kind in ("word", "quoted") and self._peek().text == "(" and word not in _KEYWORDS:
                parts += self._call(token, parts)
            elif token.text in ("->", "->>"):
                self._arrow(token.text, parts)
            elif word in ("like", "glob") and not behind_dot:
                parts += self._like(token)
            elif word in ("match", "regexp") and not behind_dot:
                raise self._refused(f"{token.text.upper()} can fail; use LIKE or GLOB")
            elif word == "collate" and not behind_dot:
                if _unquoted(self._peek().text).lower() not in _COLLATIONS:
                    raise self._refused("COLLATE takes BINARY, NOCASE or RTRIM here, which every program's SQLite has")
                parts += [token, _Part("space", " "), self._take()]
            else:
                parts.append(self._sized(token, parts))
        return parts

    def _sized(self, token: _Part, before: list[_Part]) -> _Part:
        """A token with the size of its value; records columns."""
        if token.text == "||":
            self._builds = True
        if token.kind == "text":
            return _Part("text", token.text, len(token.text.encode()))
        if token.kind == "number":
            return _Part("number", token.text, 32)
        if token.kind not in ("word", "quoted"):
            return token
        name = self._columns.get(_unquoted(token.text).lower())
        row = before[-2].text if len(before) > 1 and before[-1].text == "." else ""
        if name is None or (_unquoted(row).lower() not in self._rows if self._rows else row):
            return token if self._peek().text == "." else _Part(token.kind, token.text, 64)
        sql = identifier(name)
        self._named[f"{row}.{sql}" if row else sql] = None
        return _Part(token.kind, token.text, COLUMN_BYTES)

    def _group(self) -> _Part:
        """The content of brackets, after the opening one."""
        texts, size = [], 0
        for argument in self._arguments():
            text, length = self._join(argument)
            texts.append(text)
            size += length
        return _Part("group", f"({','.join(texts)})", size)

    def _arguments(self) -> Iterator[list[_Part]]:
        while True:
            yield self._parts()
            if self._at >= len(self._tokens):
                raise self._refused("the brackets do not match")
            self._at += 1
            if self._tokens[self._at - 1].text == ")":
                return

    @staticmethod
    def _join(parts: list[_Part]) -> tuple[str, int]:
        return "".join(part.text for part in parts), sum(part.size for part in parts)

    # -- functions ----------------------------------------------------------

    def _call(self, token: _Part, before: list[_Part]) -> list[_Part]:
        """A function call, or the size after the type in a CAST."""
        words = [part.text.lower() for part in before if part.kind != "space"]
        if words and words[-1] == "as":
            self._take()
            return [token, self._group()]
        name = token.text.lower()
        if token.kind == "quoted" or name not in FUNCTIONS:
            raise self._refused(
                f"{token.text}() is not among SQLite's own functions that can be called here, which every program has "
                "and which never make a write fail"
            )
        self._take()
        arguments = list(self._arguments())
        texts = [self._join(argument)[0] for argument in arguments]
        size = sum(self._join(argument)[1] for argument in arguments) + 100
        if name in _OF_JSON:
            for path in arguments[1:]:
                self._check_path(name, path)
            first = texts[0].strip()
            call = f"{token.text}({','.join(texts)})"
            return [_Part("group", f"(CASE WHEN json_valid({first}) THEN {call} END)", size)]
        if name == "abs" and len(texts) == 1:
            # abs() raises for the smallest integer, whose absolute value is too large.
            return [_Part("group", f"{token.text}(nullif({texts[0]}, -9223372036854775808))", size)]
        if name in _BUILDERS:
            self._builds = True
            size = self._built(name, arguments)
        return [_Part("group", f"{token.text}({','.join(texts)})", size)]

    def _built(self, name: str, arguments: list[list[_Part]]) -> int:
        """The most bytes that a function's result may have."""
        sizes = [self._join(argument)[1] for argument in arguments]
        if name == "replace" and len(arguments) == 3:
            if _literal(arguments[2]) is None:
                raise self._refused("replace() needs text in quotes to put in, as its third argument")
            return sizes[0] * (sizes[2] + 1)
        if name in ("printf", "format"):
            form = _literal(arguments[0])
            if form is None:
                raise self._refused(f"{name}() needs its format as text in quotes")
            wide = "*" in re.sub(r"%%", "", form) or any(
                int(digits or 0) > PRINTF_WIDTH for found in _DIRECTIVE.findall(form) for digits in found
            )
            if wide:
                raise self._refused(f"{name}() takes no width from a value, and none over {PRINTF_WIDTH}, here")
            return sizes[0] + 2 * sum(sizes) + (2 * PRINTF_WIDTH + 400) * form.count("%")
        if name.endswith("trim") and len(arguments) == 2 and _literal(arguments[1]) is None:
            raise self._refused(f"{name}() needs the characters as text in quotes, as its second argument")
        return 4 * sum(sizes) + 100 if name != "strftime" else 30 * sum(sizes) + 100

    def _check_path(self, name: str, path: list[_Part]) -> None:
        text = _literal(path)
        if text is None:
            raise self._refused(f"{name}() needs its path as text in quotes, like '$.name': another one can fail")
        if not _PATH.fullmatch(text):
            raise self._refused(f"{name}(): {text!r} is not a JSON path like '$.name' or '$[0]'")

    # -- operators ----------------------------------------------------------

    def _arrow(self, arrow: str, parts: list[_Part]) -> None:
        """``->`` and ``->>``: guards the part before them, which it removes from ``parts``."""
        places = [place for place, part in enumerate(parts) if part.kind != "space"]
        brackets = self._refused(f"the left side of {arrow} must be a column, or stand in brackets")
        if not places or parts[places[-1]].kind not in ("word", "quoted", "text", "group"):
            raise brackets
        if parts[places[-1]].text.lower() in _KEYWORDS:
            raise brackets
        while len(places) > 2 and parts[places[-2]].text == ".":
            places = places[:-2]
        if len(places) > 1 and parts[places[-2]].text.lower() in ("||", "~", "+", "-", "collate", "binary", "nocase"):
            raise brackets
        left, size = self._join(parts[places[-1] :])
        del parts[places[-1] :]
        right = self._peek()
        path = _literal([right])
        if right.kind != "number" and path is None:
            raise self._refused(f"the right side of {arrow} must be a number, or text in quotes: another one can fail")
        if path is not None and not (_PATH if path.startswith("$") else _LABEL).fullmatch(path):
            raise self._refused(f"the right side of {arrow}: {path!r} is not a JSON path or a plain name")
        if right.kind == "number" and not re.fullmatch(r"\d{1,9}", right.text):
            raise self._refused(f"the right side of {arrow} must be a whole number")
        left = left.strip()
        text = f"(CASE WHEN json_valid({left}) THEN {left} {arrow} {self._take().text} END)"
        parts.append(_Part("group", text, size))

    def _like(self, token: _Part) -> list[_Part]:
        """``LIKE`` and ``GLOB``, with their pattern."""
        name = token.text.upper()
        pattern = self._peek()
        if pattern.kind != "text" or self._peek(1).text in ("||", "->", "->>"):
            raise self._refused(f"the pattern of {name} must be text in quotes: another one can fail; or use instr()")
        taken = [token, _Part("space", " "), self._take()]
        if self._peek().text.lower() == "escape":
            escape = _literal([self._peek(1)])
            if escape is None or len(escape) != 1 or self._peek(2).text in ("||", "->", "->>"):
                raise self._refused(f"{name} … ESCAPE needs one character in quotes")
            taken += [_Part("space", " "), self._take(), _Part("space", " "), self._take()]
        return taken


def _literal(parts: list[_Part]) -> str | None:
    """The text of a string literal, if the parts are just that; else ``None``."""
    found = [part for part in parts if part.kind != "space"]
    if len(found) != 1 or found[0].kind != "text":
        return None
    return found[0].text[1:-1].replace("''", "'")


def _unquoted(name: str) -> str:
    """A name without the quotes around it."""
    if name[:1] in ('"', "`"):
        return name[1:-1].replace(name[0] * 2, name[0])
    return name[1:-1] if name[:1] == "[" else name
