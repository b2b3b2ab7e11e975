"""Permissions and cross-site checks, and the gateway that applies them for every protocol."""
