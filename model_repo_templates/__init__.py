"""The templates of config.pbtxt, one folder a backend, found by importlib.resources in a wheel and in a clone alike."""
