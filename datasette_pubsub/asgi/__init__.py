"""What is done to the server under us."""
