"""Connect RPC."""
