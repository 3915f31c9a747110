"""Real models, ready to be registered."""
