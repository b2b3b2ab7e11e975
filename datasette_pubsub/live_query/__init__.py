"""Live queries: a SELECT runs again when its result may have changed, and its subscribers get what did change."""
