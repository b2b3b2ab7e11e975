"""The plugin's implementations of Datasette's hooks.

This module imports no part of Datasette: programs that use the client alone load it as well.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from pluggy import HookimplMarker

from . import lazy

if TYPE_CHECKING:
    from datasette.app import Datasette
    from datasette.events import Event
    from datasette.utils.asgi import Request

    from . import compat, datasette_events, events, sinks
    from .access import permissions, rules, rulings, table_rules
    from .asgi import deferred, heap
    from .broadcast import tables as broadcast_tables
    from .broker import own_writes, shutdown
    from .broker import registry as brokers
    from .broker.registry import Registry
    from .demo import weather
    from .http import responses
    from .pages import (
        broadcast,
        jump_menu,
        live_query,
        live_table,
        log_cells,
        panel,
        publish_form,
        renderer,
        runs,
        viewer,
    )
    from .publish_batch import aggregate, bridge
    from .storage import error_frames, log
else:
    aggregate = lazy.LazyModule("publish_batch.aggregate")
    bridge = lazy.LazyModule("publish_batch.bridge")
    broadcast = lazy.LazyModule("pages.broadcast")
    broadcast_tables = lazy.LazyModule("broadcast.tables")
    brokers = lazy.LazyModule("broker.registry")
    own_writes = lazy.LazyModule("broker.own_writes")
    error_frames = lazy.LazyModule("storage.error_frames")
    compat = lazy.LazyModule("compat")
    datasette_events = lazy.LazyModule("datasette_events")
    deferred = lazy.LazyModule("asgi.deferred")
    events = lazy.LazyModule("events")
    heap = lazy.LazyModule("asgi.heap")
    responses = lazy.LazyModule("http.responses")
    jump_menu = lazy.LazyModule("pages.jump_menu")
    live_query = lazy.LazyModule("pages.live_query")
    live_table = lazy.LazyModule("pages.live_table")
    log = lazy.LazyModule("storage.log")
    log_cells = lazy.LazyModule("pages.log_cells")
    panel = lazy.LazyModule("pages.panel")
    permissions = lazy.LazyModule("access.permissions")
    publish_form = lazy.LazyModule("pages.publish_form")
    rules = lazy.LazyModule("access.rules")
    rulings = lazy.LazyModule("access.rulings")
    renderer = lazy.LazyModule("pages.renderer")
    runs = lazy.LazyModule("pages.runs")
    shutdown = lazy.LazyModule("broker.shutdown")
    sinks = lazy.LazyModule("sinks")
    table_rules = lazy.LazyModule("access.table_rules")
    viewer = lazy.LazyModule("pages.viewer")
    weather = lazy.LazyModule("demo.weather")

logger = logging.getLogger("datasette_pubsub")

#: As ``from datasette import hookimpl`` has it.
hookimpl = HookimplMarker("datasette")

INTERNAL = "_internal"

ROUTES: list[tuple[str, Callable[..., Awaitable[Any]]]] = [
    (r"^/(?P<database>[^/]+)/-/pubsub/-/stream$", lazy.view("http.sse", "stream")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/live$", lazy.view("http.live", "stream")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/publish$", lazy.view("http.api", "publish")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/publish-form$", lazy.view("pages.publish_form", "publish_form")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/run$", lazy.view("pages.runs", "run")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/ack$", lazy.view("http.api", "ack")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/messages\.json$", lazy.view("http.messages", "as_json")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/messages\.csv$", lazy.view("http.messages", "as_csv")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/channels\.json$", lazy.view("http.api", "channels")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/subscriptions$", lazy.view("pages.subscriptions", "page")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/activity\.json$", lazy.view("pages.panel", "activity_json")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/subscriptions\.json$", lazy.view("http.api", "subscriptions")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/subscriptions/delete$", lazy.view("http.api", "delete_subscription")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/queries$", lazy.view("pages.standing", "page")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/queries\.json$", lazy.view("http.api", "standing_queries")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/health$", lazy.view("http.health", "health")),
    (r"^/(?P<database>[^/]+)/-/pubsub/-/snapshot\.json$", lazy.view("http.api", "snapshot")),
    (r"^/(?P<database>[^/]+)/-/pubsub/?$", lazy.view("pages.viewer", "viewer")),
    (r"^/(?P<database>[^/]+)/-/pubsub/(?P<channel>(?!-/).+)$", lazy.view("pages.viewer", "viewer")),
    (r"^/(?P<database>[^/]+)/(?P<table>[^/]+)/-/broadcast$", lazy.view("pages.broadcast", "page")),
    (r"^/db\.v1\.DbService/(?P<method>.*)$", lazy.view("rpc.service", "view")),
    (
        r"^/grpc\.reflection\.(?P<version>v1|v1alpha)\.ServerReflection/(?P<method>.*)$",
        lazy.view("rpc.reflection", "view"),
    ),
]


def registry(datasette: Datasette) -> Registry:
    """The registry of this Datasette's brokers."""
    return brokers.registry(datasette)


@hookimpl
def register_events() -> list[type[Event]]:
    return [events.PublishMessages]


@hookimpl
def track_event(datasette: Datasette, event: Event) -> Any:
    """After the commit, bring the hub up to the log's head; publish events of other kinds where that is wanted."""
    if isinstance(event, events.PublishMessages):
        broker = registry(datasette).find(event.database)
        return None if broker is None else broker.refresh()
    return datasette_events.publish(datasette, event)


@hookimpl
def startup(datasette: Datasette) -> Callable[[], Awaitable[None]]:
    async def begin() -> None:
        registry(datasette).begin()
        if registry(datasette).instance_settings.demo_database:
            await weather.serve_demo(datasette, registry(datasette).instance_settings.demo_database)
        for name in list(datasette.databases):
            registry(datasette).settings(name)
            broker = registry(datasette).find(name)
            if broker is not None:
                runs.make_known(datasette.get_database(name))
                await broker.store.look()
                if broker.settings.standing_queries:
                    # They run from the start, not from the first request.
                    registry(datasette).of(name)
        sinks.start(datasette)
        for warning in permissions.warnings(datasette):
            logger.warning(warning)

    return begin


@hookimpl(specname="shutdown")
async def end(datasette: Datasette) -> None:
    await registry(datasette).stop()


@hookimpl
def prepare_connection(conn: sqlite3.Connection, database: str, datasette: Datasette) -> None:
    broker = registry(datasette).find(database)
    if broker is None:
        return
    # Only Database.connect(write=True) sets this isolation level.
    writes = broker.store.writable and conn.isolation_level == "IMMEDIATE"
    if writes:
        bridge.forget_request()
        broker.store.prepare_write(conn)
    calls = bridge.bridge(datasette)
    runs.make_known(datasette.get_database(database))
    aggregate.register(
        conn,
        broker.settings,
        functools.partial(calls.publish, broker),
        writes=writes,
        permit=functools.partial(calls.permit, broker),
        ask=functools.partial(runs.plan, datasette, database),
    )


@hookimpl
def write_wrapper(datasette: Datasette, database: str, request: Request | None) -> Any:
    """Run around each write of Datasette that is not the batcher's.

    It ends the batcher's session, gives ``publish_batch`` the request context, and after the commit tracks
    :class:`.events.PublishMessages`, which brings the hub up to date. Datasette's "Alter table" rebuilds a table and so
    drops its triggers; the broadcast of such a table is made again in the same transaction.
    """
    if database == INTERNAL or own_writes.in_batcher.get():
        return None
    broker = registry(datasette).find(database)
    if broker is None:
        return None
    # Datasette queues the write right after this call, before the event loop runs anything else.
    broker.make_way()

    def wrapper(conn: sqlite3.Connection, track_event: Callable[[Event], None]) -> Iterator[None]:
        absence = broker.store.absence()
        if absence is not None:
            raise sqlite3.OperationalError(absence.message)
        broker.store.other_writes += 1
        token = bridge.current.set(bridge.RequestContext(request) if request is not None else None)
        aggregate.failure.set(None)
        before = log.head(conn)
        broadcasts = broadcast_tables.standing(conn)
        try:
            yield
        except Exception as error:
            error_frames.clear_frames(error)
            if isinstance(error, sqlite3.Error):
                aggregate.raise_failure()
            raise
        finally:
            bridge.current.reset(token)
        if broadcasts:
            for table, reason in broadcast_tables.restore(conn, broadcasts).items():
                logger.warning("database %s: %r was rebuilt and is not broadcast any more: %s", database, table, reason)
        head = log.head(conn)
        if head != before:
            actor = request.actor if request is not None else None
            track_event(events.PublishMessages(actor=actor, database=database, head=head))

    return wrapper


@hookimpl
def actor_from_request(datasette: Datasette, request: Request) -> None:
    """Name no actor; remember the request that the following SQL runs for."""
    found = bridge.current.get()
    if found is not None:
        found.request = request


@hookimpl(wrapper=True)
def asgi_wrapper(datasette: Datasette) -> Generator[None, list[Any], list[Any]]:
    def wrap(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                if scope["type"] == "lifespan":
                    heap.warm(registry(datasette).instance_settings.freeze_heap)
                await app(scope, receive, send)
                return
            shutdown.listen(datasette)
            answers = rulings.request_answers.set(rulings.Kept())
            token = bridge.current.set(bridge.RequestContext(run=runs.take_wanted()))
            try:
                await app(
                    compat.with_server(scope, receive, send), receive, responses.with_cors(datasette, scope, send)
                )
            finally:
                bridge.current.reset(token)
                rulings.request_answers.reset(answers)

        return wrapped

    # The first wrapper is the innermost: other plugins' wrappers stay around a stream for its whole life.
    others = yield
    return [deferred.run_deferred, *others, wrap]


@hookimpl
def register_routes() -> list[tuple[str, Callable[..., Awaitable[Any]]]]:
    return ROUTES


@hookimpl
def register_actions() -> list[Any]:
    return rules.ACTIONS


@hookimpl
async def permission_resources_sql(datasette: Datasette, actor: dict[str, Any] | None, action: str) -> Any:
    return [
        *await rules.own_rules(datasette, actor, action),
        *await table_rules.own_rules(datasette, actor, action),
    ]


@hookimpl
def database_actions(datasette: Datasette, actor: dict[str, Any] | None, database: str) -> Any:
    async def links() -> list[dict[str, str]]:
        live = await viewer.database_link(datasette, actor, database)()
        return [*live, *await publish_form.database_link(datasette, actor, database)()]

    return links


@hookimpl
def register_output_renderer() -> dict[str, Any]:
    """``.live`` beside ``.json`` and ``.csv``."""
    return renderer.renderer()


@hookimpl
def table_actions(
    datasette: Datasette, actor: dict[str, Any] | None, database: str, table: str, request: Request
) -> Any:
    async def links() -> list[dict[str, str]]:
        live = await live_query.action(datasette, request, live_query.Source(database=database, table=table))
        return [*live, *await broadcast.table_link(datasette, actor, database, table)()]

    return links


@hookimpl
def view_actions(datasette: Datasette, database: str, view: str, request: Request) -> Any:
    return live_query.action(datasette, request, live_query.Source(database=database, table=view))


@hookimpl
def query_actions(datasette: Datasette, database: str, query_name: str | None, request: Request, sql: str) -> Any:
    source = live_query.Source(database=database, query_name=query_name, sql=sql)
    return live_query.action(datasette, request, source)


@hookimpl
def filters_from_request(request: Request, database: str, table: str, datasette: Datasette) -> Any:
    """Filter nothing; Datasette calls this hook before it reads the rows of a table's page."""
    runs.note_table_page()
    return live_table.look(request, datasette, database, table)


@hookimpl
async def top_table(datasette: Datasette, request: Request, database: str) -> str:
    return await live_table.top(datasette, request, database)


@hookimpl
async def extra_js_urls(
    datasette: Datasette, request: Request | None, database: str | None, view_name: str
) -> list[dict[str, Any]]:
    return [*live_table.script(request), *await runs.script(datasette, request, database, view_name)]


@hookimpl
def extra_css_urls(request: Request | None, table: str | None) -> list[str]:
    return [*live_table.style(request), *log_cells.style(table)]


@hookimpl
def render_cell(
    datasette: Datasette, request: Request | None, database: str, table: str | None, column: str, value: Any
) -> Any:
    return log_cells.cell(datasette, request, database, table, column, value)


@hookimpl
async def top_database(datasette: Datasette, request: Request, database: str) -> str | None:
    return await panel.panel(datasette, request, database)


@hookimpl
async def top_query(datasette: Datasette, request: Request, database: str) -> str:
    return await runs.top(datasette, request, database, None)


@hookimpl
async def top_stored_query(datasette: Datasette, request: Request, database: str, query_name: str) -> str:
    return await runs.top(datasette, request, database, query_name)


@hookimpl
async def jump_items_sql(datasette: Datasette, actor: dict[str, Any] | None, request: Request) -> Any:
    return await jump_menu.channels(datasette, actor, request.args.get("q") or "")


@hookimpl(optionalhook=True)
def register_mcp_tools(datasette: Datasette, mcp: Any) -> None:
    """A hook of datasette-mcp."""
    from .agents.mcp import register

    register(datasette, mcp)


@hookimpl(optionalhook=True)
def register_agent_tools() -> list[Any]:
    """A hook of datasette-agent."""
    from .agents.chat import agent_tools

    return agent_tools()


@hookimpl
def register_commands(cli: Any) -> None:
    from .cli.group import Commands

    cli.add_command(Commands())
