"""The events that the plugin adds to those of Datasette."""

from __future__ import annotations

from dataclasses import dataclass

from datasette.events import Event


@dataclass
class PublishMessages(Event):
    """Event name: ``publish-messages``

    Messages were committed by one of Datasette's own writes, not by the
    batcher: by the write page, the write API or a plugin. Another plugin
    receives it in its hook ``track_event``.

    :ivar database: the database's name
    :ivar head: the log's newest message id after the write

    Example::

        from datasette import hookimpl
        from datasette.plugins import pm
        from datasette_pubsub.events import PublishMessages

        heads = []

        class MyPlugin:
            @hookimpl
            def track_event(self, event):
                if isinstance(event, PublishMessages):
                    heads.append((event.database, event.head))

        pm.register(MyPlugin(), name="my-plugin")
        try:
            await datasette.get_database("data").execute_write(
                "INSERT INTO vpubsub (channel, payload) VALUES ('news', 'hello')"
            )
        finally:
            pm.unregister(name="my-plugin")
        assert heads == [("data", 1)]
    """

    name = "publish-messages"
    database: str
    head: int
