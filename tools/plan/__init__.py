"""`liquidnet plan`."""
