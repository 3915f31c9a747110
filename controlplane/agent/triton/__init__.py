"""Triton behind the agent's `Server` protocol."""
