"""The command line: ``datasette pubsub``."""
