"""The log and the subscriptions in SQLite: plain functions that take a connection."""
