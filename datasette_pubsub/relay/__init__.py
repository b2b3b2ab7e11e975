"""Beyond one machine: copies a log into a stream of NATS JetStream, and streams into logs.

Each command is a process of its own, with the file to itself among this process's connections: it uses APSW, which
carries its own SQLite. Needs the extra ``datasette-pubsub[nats]``.

- :mod:`.relay.relay` copies a log into a stream, :mod:`.relay.follow` a stream into a follower's file, and
  :mod:`.relay.importer` any stream into a log of ids of its own;
- :mod:`.relay.record` is a message in both forms, :mod:`.relay.logfile` the file, :mod:`.relay.stream` the stream.

The law: a message's id is its sequence number in the stream. docs/beyond-one-machine.md says what follows from it.
"""
