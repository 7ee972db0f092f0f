"""One module a kind of node; each has ``step(ctx, settings, inputs) -> Result``."""
