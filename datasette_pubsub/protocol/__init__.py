"""Wire formats: encodes messages and events as bytes, and decodes messages from JSON."""
