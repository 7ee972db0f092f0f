"""Studies: many small pipelines over one store, and what their differences show."""
