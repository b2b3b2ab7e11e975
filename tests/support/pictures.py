"""Pictures of every page, on a phone and a desktop, some also dark: ``python tests/support/pictures.py FOLDER``."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import browsers as chromium
import yaml
from commands import call
from every_page import CONFIG, DARK, PAGES, dark_config, fill, log_in, show
from places import ROOT
from playwright.sync_api import Browser, BrowserContext, expect
from servers import Server

from datasette_pubsub.demo import weather

Scheme = Literal["light", "dark"]

WIDTHS = {"phone": 390, "desktop": 1280}


#: How many days of the demo's record have been replayed, up to the middle of a June.
DAYS = 895


@contextlib.contextmanager
def served(name: str, config: dict[str, Any]) -> Iterator[Server]:
    """A server with a new database of this name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.db"
        sqlite3.connect(path).close()
        server = Server([path], config, Path(folder))
        try:
            yield server.start()
        finally:
            server.kill()


def contexts(browser: Browser, scheme: Scheme = "light") -> Iterator[tuple[str, BrowserContext]]:
    """A profile for each size, with its name and the scheme's."""
    for kind, width in WIDTHS.items():
        viewport: Any = {"width": width, "height": 800}
        with contextlib.closing(browser.new_context(color_scheme=scheme, viewport=viewport)) as context:
            yield f"{kind}-{scheme}", context


def pages(browser: Browser, folder: Path, names: Iterable[str], config: dict[str, Any], scheme: Scheme) -> None:
    with served("shop", config) as server:
        fill(server)
        for kind, context in contexts(browser, scheme):
            log_in(context, server)
            for name in names:
                page = show(context, server, name)
                page.screenshot(path=folder / f"{name}-{kind}.png")
                page.close()


def demo(browser: Browser, folder: Path) -> None:
    """The demo's stored query, while another program replays the weather."""
    config = yaml.safe_load((ROOT / "datasette.yml").read_text())
    with served("weather", config) as server, contextlib.closing(sqlite3.connect(server.path)) as conn:
        call("install", server.path)
        weather.prepare(conn)
        while weather.progress(conn) < DAYS:
            weather.advance(conn)
        conn.commit()
        for kind, context in contexts(browser):
            page = context.new_page()
            page.goto(f"{server.url}/weather/this_month.live")
            expect(page.locator("pubsub-query")).to_have_attribute("data-status", "live")
            weather.advance(conn)
            conn.commit()
            expect(page.locator("tr.pubsub-changed").first).to_be_visible()
            page.screenshot(path=folder / f"month-{kind}.png")
            page.close()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with chromium.running() as browser:
        pages(browser, folder, PAGES, CONFIG, "light")
        pages(browser, folder, DARK, dark_config(), "dark")
        demo(browser, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
