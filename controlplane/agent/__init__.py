"""The process beside each server: asks the controller what to hold, loads it, proves it, reports."""
