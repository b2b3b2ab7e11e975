"""Subscribers and publish streams on the event loop. This room knows no SQL and no HTTP."""
