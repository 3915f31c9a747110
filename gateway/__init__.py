"""The gateway: Envoy does all of the per-request work, a small Python part tells it what to do and takes the rest."""
