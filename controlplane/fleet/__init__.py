"""Starts and stops replicas: as processes of this machine, or as pods."""
