"""Every name in the docs is one of something, every link leads somewhere, and every page is shown."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from itertools import product
from typing import Any, get_args

from doc_pages import DOCS, anchors
from doc_parts import WEB, asked_for, error_classes, section
from every_page import DARK, PAGES
from metric_tables import prometheus
from places import ROOT

from datasette_pubsub import client, hookspecs
from datasette_pubsub.agents import tools
from datasette_pubsub.broadcast import definition, harmless
from datasette_pubsub.broker import probe
from datasette_pubsub.core.settings import Settings
from datasette_pubsub.gen import db_pb2
from datasette_pubsub.http import request
from datasette_pubsub.live import admission
from datasette_pubsub.storage import log, objects
from datasette_pubsub.telemetry.registry import METRICS, SCOPE


def client_methods() -> list[Any]:
    kinds = (client.Client, client.Subscriber)
    return [client.follow, *(method for kind in kinds for _, method in inspect.getmembers(kind, inspect.isfunction))]


def test_no_name_that_does_not_exist() -> None:
    """Every `name_with_underscores` in the docs is one of something."""
    known = {option.name for option in fields(Settings)} | {error.code for error in error_classes()}
    known |= {field.name for message in db_pb2.DESCRIPTOR.message_types_by_name.values() for field in message.fields}
    known |= set().union(*(asked_for(module, holder) for module in WEB for holder in ("args", "data")))
    known |= set(log.Channel("a", 1, 1, "").as_json()) | {"publish_batch", "span_seconds", "lag_is_more", "relay_to"}
    known |= set(re.findall(r"`(v?pubsub\w*)`", DOCS["sql"])) | {"pubsub_messages"}
    known |= set(re.findall(r"\w+", " ".join(aggregate for _, aggregate in objects.OBJECTS.values())))
    known |= {field.name for field in fields(probe.Report)} | {SCOPE, *get_args(admission.Kind)}
    known |= {f"{prometheus(metric)}{part}" for metric in METRICS for part in ("", "_bucket", "_sum", "_count")}
    known |= {name for name, _ in inspect.getmembers(tools, inspect.iscoroutinefunction)}
    known |= {name for name in vars(hookspecs) if name.startswith("pubsub_")}
    # Connect's, and names of Datasette and SQLite.
    known |= {"too_large", "per_row", *(f"when_{operation}" for operation in definition.OPERATIONS)}
    known |= {"deadline_exceeded", "base_url", "execute_write_fn", "execute_isolated_fn", "permission_resources_sql"}
    known |= {"write_wrapper", "prepare_connection", *client.__all__}
    known |= {name for method in client_methods() for name in inspect.signature(method).parameters}
    known |= {method.__name__ for method in client_methods()} | {"resumed_at", "track_event"}
    known |= {
        "sql_time_limit_ms",
        "max_returned_rows",
        "json_each",
        "sqlite_master",
        "cache_size_kb",
        "num_sql_threads",
        "call_soon_threadsafe",
        "lru_cache",
        *harmless.FUNCTIONS,
        *request.LAST_EVENT_ID,
    }
    for page, text in DOCS.items():
        for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text):
            assert name in known, (page, name)


def test_links_lead_somewhere() -> None:
    for page, text in DOCS.items():
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            name, _, anchor = target.partition("#")
            path = (ROOT / "docs" / name).resolve() if name else ROOT / "docs" / f"{page}.md"
            assert path.exists(), (page, target)
            if anchor:
                assert anchor in anchors(path.read_text()), (page, target)
    contents = set(re.findall(r"\]\(([\w-]+)\.md\)", DOCS["README"]))
    # The site has the top-level README in place of index.
    assert contents == set(DOCS) - {"README", "index"}


def test_every_page_is_shown_on_a_phone_and_a_desktop_and_some_are_shown_dark() -> None:
    shown = set(re.findall(r"\]\(pictures/(.+?)\.png\)", DOCS["pictures"]))
    # The demo's query has its pictures from the demo.
    sizes = ("phone", "desktop")
    kinds = [*product([*PAGES, "month"], sizes, ("light",)), *product(DARK, sizes, ("dark",))]
    assert shown == {"-".join(kind) for kind in kinds}
    assert shown == {path.stem for path in (ROOT / "docs" / "pictures").iterdir()}


def test_every_function_that_an_expression_may_call() -> None:
    text = section("tables", "What can be chosen")
    assert [name for name in sorted(harmless.FUNCTIONS) if f"`{name}`" not in text] == []
