"""axe-core, in a real Chromium, on every page of ours: on a phone and a desktop, light and dark."""

from __future__ import annotations

from collections.abc import Callable

import browsers as chromium
import pytest
from browsers import AXE
from every_page import PAGES, dark_config, fill, log_in, show
from node_packages import prepared
from playwright.sync_api import Browser
from servers import Server

pytestmark = chromium.NEEDED

#: The rules of axe that look at colours, and so at all that a scheme changes: no script asks which one it is.
COLOURS = ["color-contrast", "link-in-text-block"]

#: What is ours on pages of Datasette.
OURS = {"panel": "pubsub-panel", "table": "pubsub-table", "log": "td:is(.col-channel, .col-payload)"}


@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(serve: Callable[..., Server], browser: Browser, width: int) -> None:
    axe = (prepared("axe") / "node_modules" / "axe-core" / "axe.min.js").read_text()
    server = serve(config=dark_config())
    fill(server)
    found = []
    context = browser.new_context(color_scheme="light", viewport={"width": width, "height": 900})
    log_in(context, server)
    for name in PAGES:
        page = show(context, server, name)
        page.evaluate(axe)
        ours = OURS.get(name, "html")
        violations = [["light", *violation] for violation in page.evaluate(AXE, [ours, None])]
        page.emulate_media(color_scheme="dark")
        # Chromium computes the colours of an animation when it begins: those of before the change run out.
        page.evaluate("Promise.all(document.getAnimations().map(({ finished }) => finished))")
        violations += [["dark", *violation] for violation in page.evaluate(AXE, [ours, COLOURS])]
        for scheme, rule, impact, nodes in violations:
            if impact in ("serious", "critical"):
                found.append(f"{name} {scheme}: {rule}: {nodes}")
        # Nothing is wider than the screen.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        page.close()
    context.close()
    assert not found, "\n".join(found)
