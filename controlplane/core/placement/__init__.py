"""Which replica holds which version: what shall be loaded, what has a place already, who makes room."""
