"""`ctl`: what people type. Thin commands over the rooms below."""
