"""Values, settings, errors and validation rules. This room does no input or output and knows no SQL."""
