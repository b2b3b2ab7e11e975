"""Storage and live, put together for one database."""
