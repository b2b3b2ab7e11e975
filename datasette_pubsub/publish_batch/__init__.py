"""The SQL function ``publish_batch``."""
