"""The edge at which an `Entry` comes into being: the entry file (`model.yaml`), and what a model's own file says."""
