"""datasette-pubsub: every SQLite database that Datasette serves is a durable publish/subscribe broker."""

from .hooks import (
    actor_from_request,
    asgi_wrapper,
    database_actions,
    end,
    permission_resources_sql,
    prepare_connection,
    register_actions,
    register_commands,
    register_events,
    register_routes,
    startup,
    track_event,
    write_wrapper,
)

__all__ = [
    "actor_from_request",
    "asgi_wrapper",
    "database_actions",
    "end",
    "permission_resources_sql",
    "prepare_connection",
    "register_actions",
    "register_commands",
    "register_events",
    "register_routes",
    "startup",
    "track_event",
    "write_wrapper",
]
