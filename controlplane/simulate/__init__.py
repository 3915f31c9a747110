"""What would have happened: a fleet's traffic replayed against the controller's own decisions, and against others."""
