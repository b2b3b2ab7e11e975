"""A table publishes its own changes."""
