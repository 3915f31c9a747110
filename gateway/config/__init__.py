"""Route table → Envoy's configuration. Pure: values in, JSON out."""
