"""A real Chromium for the tests of pages: where it is found, and how it is run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright
from servers import DEADLINE

#: The names under which distributions install it. The shell is the same engine without the windows around it, which
#: take more than half of the processor time of a page, though nobody sees them.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")

#: Those with windows. In the shell, one of many tabs at once did not run its scripts now and then, while other tests
#: made and removed network devices; in all of Chromium that was not seen.
WITH_WINDOWS = NAMES[1:]

#: How long an expectation of a page may take to come true, in milliseconds.
DEADLINE_MS = DEADLINE * 1000

#: What is found, and where. Datasette's own header, footer and pages are not ours to mend.
AXE = """async ([ours, runOnly]) => {
    const place = { include: [ours], exclude: ["header.hd", "footer.ft", "navigation-search"] };
    const { violations } = await axe.run(place, runOnly ? { runOnly } : {});
    return violations.map(({ id, impact, nodes }) => [id, impact, nodes.map(({ html }) => html.slice(0, 200))]);
}"""


def binary(names: Sequence[str] = NAMES) -> str | None:
    """The path of a Chromium, ``None`` when there is none."""
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def running(names: Sequence[str] = NAMES) -> Iterator[Browser]:
    """A Chromium, closed at the end. The event loop of the playwright ends with it: keep it short of other tests."""
    expect.set_options(timeout=DEADLINE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=binary(names), args=["--no-sandbox", "--disable-background-networking"]
        )
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A browser context that remembers what must not happen, and which streams were opened."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        #: The addresses of the streams that pages asked for, oldest first.
        self.streams: list[str] = []
        self._open: list[Request] = []
        context.set_default_timeout(DEADLINE_MS)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        context.on("request", self._request)
        context.on("requestfailed", self._ended)
        context.on("requestfinished", self._ended)
        context.on("dialog", self._dialog)

    def _request(self, request: Request) -> None:
        url = request.url
        if "/-/stream" in url or "/-/live?" in url:
            self.streams.append(url)
            self._open.append(request)

    def _ended(self, request: Request) -> None:
        if request in self._open:
            self._open.remove(request)

    @property
    def open_streams(self) -> list[Request]:
        """The streams that have not ended, oldest first."""
        return [request for request in self._open if not request.frame.page.is_closed()]

    def _dialog(self, dialog: object) -> None:
        self.dialogs.append(dialog.message)  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    def open(self, url: str, status: str = "live") -> Page:
        """A new tab with this page, once its viewer or query shows the status."""
        page = self.context.new_page()
        page.goto(url)
        if status:
            expect(page.locator("pubsub-viewer, pubsub-query")).to_have_attribute("data-status", status)
        return page


def payloads(page: Page) -> list[str]:
    """What the rows show as payload, from the top."""
    return page.locator(".pubsub-messages tbody td.col-payload").all_inner_texts()


def first(page: Page, text: str) -> None:
    """Wait until this is the newest payload."""
    expect(page.locator(".pubsub-messages tbody td.col-payload").first).to_have_text(text)


def status(page: Page, text: str | re.Pattern[str]) -> None:
    """Wait until the status line says this."""
    expect(page.get_by_role("status")).to_have_text(text)


#: Tests of pages are skipped where there is no browser.
NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(binary() is None, reason=f"none of {', '.join(NAMES)} is installed"),
]


def needed(test: Callable[..., None]) -> Callable[..., None]:
    """Mark one test as one that needs a browser; :data:`NEEDED` marks a module."""
    for mark in NEEDED:
        test = mark(test)
    return test
