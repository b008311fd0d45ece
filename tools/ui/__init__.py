"""`liquidnet ui`."""
