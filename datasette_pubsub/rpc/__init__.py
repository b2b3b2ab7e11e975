"""The protocol Connect RPC, which also serves gRPC-Web and gRPC."""
