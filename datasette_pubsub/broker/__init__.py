"""The broker: storage and live subscribers together, for one database."""
