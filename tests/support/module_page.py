"""The JavaScript module in a page of its own."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page
from servers import Server

MODULE = "/-/static-plugins/datasette_pubsub/pubsub.js"


def follow(page: Page, server: Server, name: str = "it", **options: Any) -> None:
    """Follow channels with the module itself."""
    base = {} if "url" in options else {"base": f"/{server.database}/-/pubsub"}
    page.evaluate(CONNECT, [MODULE, name, base | options])


def seen(page: Page, what: str, name: str = "it") -> Any:
    return page.evaluate("([name, what]) => window.seen[name][what]", [name, what])


def until(page: Page, condition: str, name: str = "it") -> None:
    """Wait until an expression about `seen` is true."""
    page.wait_for_function(f"(name) => {{ const seen = window.seen[name]; return {condition}; }}", arg=name)


#: Begins to follow channels in a page, and keeps what was called back in `window.seen[name]`.
CONNECT = """async ([module, name, options]) => {
    const { connect } = await import(module);
    window.seen ??= {};
    const seen = window.seen[name] = { messages: [], gaps: [], statuses: [], reasons: [] };
    seen.connection = connect({
        ...options,
        onmessage: (message) => seen.messages.push(message.payload),
        ongap: (gap) => seen.gaps.push(gap),
        onstatus: (status, detail) => { seen.statuses.push(status); seen.reasons.push(detail.reason ?? null); },
    });
}"""
