"""Prints tables of options for cog, which puts them into docs/configuration.md and docs/cli.md: ``make docs``."""

from __future__ import annotations

import re
from dataclasses import Field, fields
from typing import Any

import click

from datasette_pubsub.cli.main import pubsub
from datasette_pubsub.core.settings import Settings


def default(option: Field[Any]) -> str:
    """The default as a reader writes it: ``true``, ``1,048,576``, ``0.5``, or ``none`` for an empty value."""
    value = option.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value or "none")


def bounds(option: Field[Any]) -> str:
    """The values that the option may have: ``1 to 10,000``, ``1 or more``, or in words."""
    meta = option.metadata
    if meta["bounds"]:
        return str(meta["bounds"])
    if isinstance(option.default, bool):
        return "true, false"
    end = "or more" if meta["high"] == float("inf") else f"to {meta['high']:,.15g}"
    return f"{meta['low']:,.15g} {end}"


def with_bounds_and_reasons() -> None:
    """Print the table of docs/configuration.md."""
    print("| option | default | unit | bounds | meaning | why |\n|---|---|---|---|---|---|")
    for option in fields(Settings):
        meta = option.metadata
        cells = (f"`{option.name}`", default(option), meta["unit"], bounds(option), meta["doc"], meta["why"])
        print(f"| {' | '.join(cells)} |")


#: What is code in a command's help: other options, values and parts of SQL and of addresses.
_CODE = re.compile(
    r"--[a-z][a-z-]*|'[^']+'|\{\w+\}|\b(?:nats|tls)://|\b(?:NEW|OLD)\b|\b(?:earliest|latest|last)(?=:)|changes/TABLE"
    r"|\b\d+[dhms]\b|\bpath(?:(?=\ or\ path:)|:entrypoint)"
)


def command(name: str, links: dict[str, str] | None = None) -> None:
    """Print a command's options, with the texts of its ``--help``; ``links`` are words in them, and where they lead."""
    links, unused = links or {}, set(links or {})
    print("| option | meaning |\n|---|---|")
    for option in pubsub.commands[name].params:
        if isinstance(option, click.Option):
            text = _meaning(option)
            for words in [words for words in links if words in text]:
                text = text.replace(words, f"[{words}]({links[words]})")
                unused.discard(words)
            flags = ", ".join(f"`{flag}`" for flag in [*option.opts, *option.secondary_opts])
            print(f"| {flags} | {text} |")
    assert not unused, f"{name}: no option's text has {unused}"


def _meaning(option: click.Option) -> str:
    text = (option.help or "").rstrip(".")
    text = _CODE.sub(lambda match: f"`{match[0].strip(chr(39))}`", text[0].lower() + text[1:])
    if isinstance(option.type, click.Choice) and not re.search(rf"`{option.type.choices[0]}`", text):
        text += f" ({', '.join(f'`{choice}`' for choice in option.type.choices)})"
    if option.show_default:
        value = option.default
        if isinstance(value, bool):
            value = (option.opts if value else option.secondary_opts)[0]
        text += f"; {f'{value:,.15g}' if isinstance(value, (int, float)) else f'`{value}`'} by default"
    return text
