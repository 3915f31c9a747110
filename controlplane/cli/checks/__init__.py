"""What `ctl doctor` looks at."""
