"""Values in, bytes out, and back."""
