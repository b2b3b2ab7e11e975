"""axe-core, in a real Chromium, on every page of ours: on a phone and a desktop, light and dark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import browsers as chromium
import pytest
from every_page import CONFIG, PAGES, fill, log_in, show
from node_packages import prepared
from playwright.sync_api import Browser
from servers import Server

pytestmark = chromium.NEEDED

#: What is found, and where. Datasette's own header, footer and pages are not ours to mend.
AXE = """async (ours) => {
    const { violations } = await axe.run({ include: [ours], exclude: ["header.hd", "footer.ft", "navigation-search"] });
    return violations.map(({ id, impact, nodes }) => [id, impact, nodes.map(({ html }) => html.slice(0, 200))]);
}"""

#: What is ours on pages of Datasette.
OURS = {"panel": "pubsub-panel", "table": "pubsub-table"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    serve: Callable[..., Server], browser: Browser, scheme: Literal["light", "dark"]
) -> None:
    axe = (prepared("axe") / "node_modules" / "axe-core" / "axe.min.js").read_text()
    server = serve(config=CONFIG)
    fill(server)
    found = []
    for width in (390, 1280):
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        log_in(context, server)
        for name in PAGES:
            page = show(context, server, name)
            page.evaluate(axe)
            for rule, impact, nodes in page.evaluate(AXE, OURS.get(name, "html")):
                if impact in ("serious", "critical"):
                    found.append(f"{name} {width}: {rule}: {nodes}")
            # Nothing is wider than the screen.
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (name, width)
            page.close()
        context.close()
    assert not found, "\n".join(found)
