"""Text drawn from a model, here or behind an endpoint."""
