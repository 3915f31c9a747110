"""The controller: observes, plans, acts; and the HTTP API that agents, gateways and `ctl` call."""
