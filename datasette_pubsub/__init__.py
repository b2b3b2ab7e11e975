"""datasette-pubsub: every SQLite database that Datasette serves is a durable publish/subscribe broker."""

import sys

from datasette.plugins import pm

from .hooks import (
    actor_from_request,
    asgi_wrapper,
    database_actions,
    end,
    extra_css_urls,
    extra_js_urls,
    filters_from_request,
    jump_items_sql,
    permission_resources_sql,
    prepare_connection,
    query_actions,
    register_actions,
    register_commands,
    register_events,
    register_output_renderer,
    register_routes,
    startup,
    table_actions,
    top_database,
    top_query,
    top_stored_query,
    top_table,
    track_event,
    view_actions,
    write_wrapper,
)

__all__ = [
    "actor_from_request",
    "asgi_wrapper",
    "database_actions",
    "end",
    "extra_css_urls",
    "extra_js_urls",
    "filters_from_request",
    "jump_items_sql",
    "permission_resources_sql",
    "prepare_connection",
    "query_actions",
    "register_actions",
    "register_commands",
    "register_events",
    "register_output_renderer",
    "register_routes",
    "startup",
    "table_actions",
    "top_database",
    "top_query",
    "top_stored_query",
    "top_table",
    "track_event",
    "view_actions",
    "write_wrapper",
]

# When a program imports this package before it imports Datasette, Datasette registers the module while it is still
# half loaded, and finds no hooks in it. Registering it again makes Datasette find them.
_this = sys.modules[__name__]
if pm.is_registered(_this) and not pm.get_hookcallers(_this):
    _name = pm.get_name(_this)
    pm.unregister(_this)
    pm.register(_this, _name)
