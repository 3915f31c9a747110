"""How many replicas a fleet shall have: what is known of its load, what may come, within which limits, and why."""
