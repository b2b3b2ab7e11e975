"""Work with the ASGI server: sends frames, learns what has arrived, and defers views."""
