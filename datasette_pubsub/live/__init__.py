"""Subscribers and publishers in the event loop: no SQL, no HTTP."""
