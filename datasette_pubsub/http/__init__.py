"""The protocols plain HTTP, Server-Sent Events and newline-delimited JSON."""
