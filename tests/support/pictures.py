"""Pictures of every page, on a phone and a desktop, light and dark: ``python tests/support/pictures.py FOLDER``."""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
from pathlib import Path
from typing import Literal, get_args

import browsers as chromium
from every_page import CONFIG, PAGES, fill, log_in, show
from servers import Server

Scheme = Literal["light", "dark"]

WIDTHS = {"phone": 390, "desktop": 1280}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "shop.db"
        sqlite3.connect(path).close()
        server = Server([path], CONFIG, Path(temporary))
        try:
            server.start()
            fill(server)
            with chromium.running() as browser:
                for scheme in get_args(Scheme):
                    for kind, width in WIDTHS.items():
                        viewport = {"width": width, "height": 800}
                        with contextlib.closing(browser.new_context(color_scheme=scheme, viewport=viewport)) as context:  # type: ignore[arg-type]
                            log_in(context, server)
                            for name in PAGES:
                                page = show(context, server, name)
                                page.screenshot(path=folder / f"{name}-{kind}-{scheme}.png")
                                page.close()
        finally:
            server.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
