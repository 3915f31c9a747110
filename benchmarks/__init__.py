"""Measurements, each a ratio against a named limit or peer; `python -m benchmarks` runs them all."""
