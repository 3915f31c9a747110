"""From Triton's Prometheus metrics to signals per model version and replica."""
