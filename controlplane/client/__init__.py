"""Speaks to the controller's API: the sync call of agents and gateways, and what `ctl` reads."""
