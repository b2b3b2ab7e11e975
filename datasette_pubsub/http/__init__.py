"""Plain HTTP, Server-Sent Events and newline-delimited JSON."""
