"""Broadcasts: triggers by which a table publishes its own changes."""
