"""What would have happened: traces, replays, policies, and `ctl simulate`."""
