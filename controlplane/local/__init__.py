"""What running on one machine takes: the home folder's layout, and processes that are surely found and ended."""
