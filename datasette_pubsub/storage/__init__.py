"""Plain functions of a connection: the log, the subscriptions, and what is read from them."""
