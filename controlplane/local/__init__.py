"""What running on one machine takes: the home folder's layout, and processes that are found again and ended for sure."""
