"""What the tests of this folder clean up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datasette_pubsub.storage import filter_engine


@pytest.fixture(autouse=True)
def _engines_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the connections of filters, as a broker does when it stops."""
    made: list[filter_engine.Engine] = []
    begin = filter_engine.Engine.__init__

    def beginning(engine: filter_engine.Engine) -> None:
        begin(engine)
        made.append(engine)

    monkeypatch.setattr(filter_engine.Engine, "__init__", beginning)
    yield
    for engine in made:
        engine.close()
